"""--log-format json: nothing but JSON, from the first line to the last, and never a text of anybody."""

import json
import signal
from pathlib import Path
from typing import Any

from gateway.http.exchange import AccessLine
from tests.fixtures.server import serving

FIELDS = set(AccessLine.__struct_fields__) - {"key"}
PROMPT = "Aardvarks and zeppelins"


def test_every_line_of_a_server_is_json(gguf_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--log-format", "json") as server:
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0}
        text = server.greedy(PROMPT, max_tokens=6)
        assert server.post("/v1/completions", {**body, "max_tokens": -1}).status_code == 400
        assert server.post("/v1/completions", {**body, "stream": True}).status_code == 200
        engine = server.engine_pid()
        server.send(signal.SIGTERM)
        assert server.exit_code() == 0
    output = [json.loads(line) for line in server.output.splitlines()]
    log = [json.loads(line) for line in server.log.splitlines()]
    for line in (*output, *log):
        assert {"time", "level", "logger", "message"} <= set(line)
    [ready] = output
    assert (ready["message"], ready["url"], ready["device"][:3]) == ("ready", server.api, "cpu")
    assert ready["seconds"] > 0 and ready["limits"]["max_model_len"] == 2048
    assert next(line["phase"] for line in log if line["message"] == "starting") == "importing torch"
    asked = [line for line in log if line["logger"] == "headrace.access"]
    assert all(set(line) >= FIELDS for line in asked)
    assert [(line["status"], line["outcome"], line["stream"]) for line in asked] == [
        (200, "length", False),
        (400, "invalid", False),
        (200, "length", True),
    ]
    assert asked[0]["prompt_tokens"] > 0 and asked[0]["generated_tokens"] == 6 and engine
    assert "gateway connection 1 ended" in " ".join(line["message"] for line in log if line.get("process") == "engine")
    assert text.strip() and text not in server.log and PROMPT not in server.log
