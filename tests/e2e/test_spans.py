"""Timelines as spans, as a collector gets them: OTLP over HTTP from the real server."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fixtures.server import MODEL, PATIENCE_S, eventually, run_to_end, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(BaseHTTPRequestHandler):
    spans: list[Span]
    bodies: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ExportTraceServiceRequest.FromString(body)
        self.bodies.append(body)
        for resource in request.resource_spans:
            assert {each.key: each.value.string_value for each in resource.resource.attributes}[
                "service.name"
            ] == "headrace"
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[tuple[str, type[Collector]]]:
    handler = type("Handler", (Collector,), {"spans": [], "bodies": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", handler
        server.shutdown()


def attributes(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}


def test_a_request_is_a_span_of_its_client_s_trace(gguf_path: Path, tmp_path: Path) -> None:
    with collecting() as (endpoint, collector), serving(tmp_path, "--otlp-traces-endpoint", endpoint) as server:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "traced"}
        body = {"model": MODEL, "prompt": "a secret word", "max_tokens": 5, "ignore_eos": True}
        httpx.post(f"{server.api}/completions", json=body, headers=headers, timeout=PATIENCE_S).raise_for_status()
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
        server.get("/health")
        told = server.get("/v1/requests/traced/timeline").json()
        eventually(lambda: len(collector.spans) == 8, "both requests' spans have come")
    roots = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert [span.name for span in roots] == [f"text_completion {MODEL}", f"chat {MODEL}"]
    traced, untraced = roots
    assert (traced.trace_id.hex(), traced.parent_span_id.hex()) == (TRACE, PARENT)
    assert untraced.trace_id.hex() != TRACE and not untraced.parent_span_id
    found = attributes(traced)
    assert found["gen_ai.request.model"] == MODEL
    assert (found["gen_ai.usage.output_tokens"], found["headrace.outcome"]) == (5, "length")
    assert found["headrace.request_id"] == "traced"
    causes = {f"headrace.{each['cause']}_ms": each["ms"] for each in told["causes"]}
    assert causes.items() <= found.items()
    wall_ms = (traced.end_time_unix_nano - traced.start_time_unix_nano) / 1e6
    assert wall_ms == pytest.approx(told["total_ms"], abs=1.0)
    assert [event.name for event in traced.events] == [event["name"] for event in told["events"]]
    parts = [span for span in collector.spans if span.parent_span_id == traced.span_id]
    assert [span.name for span in parts] == ["prepare", "until the first token", "decode"]
    edges = [(span.start_time_unix_nano, span.end_time_unix_nano) for span in parts]
    assert edges[0][0] == traced.start_time_unix_nano
    assert edges[0][1] == edges[1][0] and edges[1][1] == edges[2][0] and edges[2][1] <= traced.end_time_unix_nano
    assert all(b"secret" not in data for data in collector.bodies)


def test_what_was_not_sent_yet_is_sent_at_the_end(gguf_path: Path, tmp_path: Path) -> None:
    with collecting() as (endpoint, collector):
        with serving(tmp_path, "--otlp-traces-endpoint", endpoint) as server:
            server.greedy("One")
            server.process.terminate()
            assert server.exit_code() == 0
        assert any(span.kind == Span.SPAN_KIND_SERVER for span in collector.spans)


def test_no_collector_harms_nobody(gguf_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--otlp-traces-endpoint", "http://127.0.0.1:1/v1/traces") as server:
        assert server.greedy("One") == server.greedy("One")


def test_a_wrong_endpoint_is_told_at_once() -> None:
    ended = run_to_end("--otlp-traces-endpoint", "localhost:4318")
    assert ended.returncode == 2
    assert ended.stderr.strip() == "headrace: otlp_traces_endpoint: 'localhost:4318' is no http:// or https:// address"
