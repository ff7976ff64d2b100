"""Every option of the server, once: its name, type, range, default and meaning.

The command line, the HEADRACE_* variables, the keys of the TOML file and docs/config.md all derive from `Config`.
An option is taken from its flag, else its variable, else the file, else its default. Reads no environment itself.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.model.fetch import DEFAULT_MODEL

UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

PRESETS: dict[str, dict[str, int | float]] = {
    "none": {},
    "nanochat": {
        "max_messages": 500,
        "max_message_chars": 8_000,
        "max_total_chars": 32_000,
        "max_temperature": 2.0,
        "max_top_k": 200,
        "max_tokens_limit": 4096,
    },
}
SECRETS = frozenset({"api_key"})  # never shown, not even in an error

Count = Annotated[int, Meta(ge=1)]
CountOrAuto = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Size = Annotated[int, Meta(ge=0, extra={"size": True})]
"""A number of bytes; text such as 2GiB or 512MiB where a person writes it."""


class ConfigError(Exception):
    """A wrong option. One line that names it."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The options by group. A description is one line: it is shown by --help and in docs/config.md."""

    model: Annotated[
        str,
        Meta(
            description="A .gguf file, a folder with config.json and *.safetensors, org/name on the hub, nanochat: for "
            "its checkpoints, a rosellm checkpoint (.pt), or the default, which is fetched on first use."
        ),
    ] = DEFAULT_MODEL.name
    served_model_name: Annotated[str, Meta(description="Name that clients use; empty: taken from the model.")] = ""
    tokenizer: Annotated[
        str,
        Meta(
            description="Folder or name on the hub whose tokenizer is used; empty: the model's own. A rosellm "
            "checkpoint (.pt) has none."
        ),
    ] = ""
    load_format: Annotated[
        Literal["auto", "dummy"], Meta(description="dummy: seeded random weights of the model's shapes, for tests.")
    ] = "auto"

    source: Annotated[
        Literal["base", "mid", "sft", "rl"],
        Meta(description="With --model nanochat: the training that made the model."),
    ] = "sft"
    model_tag: Annotated[
        str, Meta(description="With --model nanochat: the model's tag, such as d20; empty: the deepest.")
    ] = ""
    step: Annotated[CountOrAuto, Meta(description="Of a nanochat checkpoint; 0: the last.")] = 0
    calculator: Annotated[
        bool, Meta(description="What nanochat's models ask of their calculator is computed and told to them.")
    ] = True

    tool_parser: Annotated[
        Literal["auto", "hermes", "llama3_json", "mistral", "pythonic"],
        Meta(description="Format of the model's tool calls; auto: as its chat template tells."),
    ] = "auto"
    strict: Annotated[bool, Meta(description="Refuse request fields that have no effect, instead of telling them.")] = (
        False
    )

    host: Annotated[str, Meta(description="Address to listen on; 0.0.0.0 for every interface.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 lets the system choose.")] = 8000
    replicas: Annotated[
        int, Meta(ge=0, le=64, description="Engines, each with the whole model; 0: one for each GPU, or one.")
    ] = 0
    gateways: Annotated[
        int, Meta(ge=1, le=64, description="Processes that serve HTTP on the port, for the engine's tokens; Linux.")
    ] = 1
    ray: Annotated[
        str,
        Meta(
            description="Ray cluster whose nodes run the engines: host:port, auto for that of this machine, local for "
            "one of this machine alone; needs headrace[ray]."
        ),
    ] = ""
    ray_name: Annotated[str, Meta(min_length=1, description="With --ray: what other gateways attach to.")] = "headrace"
    attach: Annotated[
        str, Meta(description="With --ray: the server of that name keeps the engines, and this gateway uses them too.")
    ] = ""
    engine_tls_cert: Annotated[
        str,
        Meta(
            description="With --ray: certificate (PEM) of engines and gateways, for the DNS name headrace-engine; "
            "empty: made at each start."
        ),
    ] = ""
    engine_tls_key: Annotated[str, Meta(description="Its key, without a passphrase.")] = ""
    engine_tls_ca: Annotated[str, Meta(description="Certificate of the authority that has signed it.")] = ""
    cors_origin: Annotated[str, Meta(description="Origin of web pages that may call the server; * for any.")] = ""
    max_body: Annotated[Size, Meta(description="Largest request body.")] = 16 << 20
    drain_timeout: Annotated[
        Seconds, Meta(description="Seconds that running requests are given to end after SIGTERM.")
    ] = 30.0
    end_with_stdin: Annotated[
        bool, Meta(description="End as after SIGTERM when standard input is closed: for programs that start a server.")
    ] = False

    api_key: Annotated[
        str, Meta(min_length=1, description="Key that clients must send; its variable is better hidden than its flag.")
    ] = ""
    api_key_file: Annotated[
        str, Meta(min_length=1, description="Keys, one a line, with names and limits; read again when it changes.")
    ] = ""
    metrics_auth: Annotated[bool, Meta(description="Where keys are set, /metrics asks for one too.")] = True
    limit_rpm: Annotated[
        CountOrAuto,
        Meta(description="Requests a minute of each key, or of all clients where no keys are set; 0: no limit."),
    ] = 0
    limit_tpm: Annotated[
        CountOrAuto, Meta(description="Tokens a minute, of prompts and answers, likewise; 0: no limit.")
    ] = 0
    limit_concurrency: Annotated[CountOrAuto, Meta(description="Requests at the same time, likewise; 0: no limit.")] = 0

    limits: Annotated[
        Literal["none", "nanochat"], Meta(description="Preset of the next six; those that are given win.")
    ] = "none"
    max_messages: Annotated[Count, Meta(description="Most messages of a chat.")] = 10_000
    max_message_chars: Annotated[CountOrAuto, Meta(description="Most characters of a message; 0: no limit.")] = 0
    max_total_chars: Annotated[
        CountOrAuto, Meta(description="Most characters of a chat's messages together; 0: no limit.")
    ] = 0
    max_temperature: Annotated[float, Meta(ge=0, le=2, description="Highest temperature to ask for.")] = 2.0
    max_top_k: Annotated[CountOrAuto, Meta(description="Highest top_k to ask for; 0: no limit.")] = 0
    max_tokens_limit: Annotated[CountOrAuto, Meta(description="Highest max_tokens to ask for; 0: no limit.")] = 0

    web_temperature: Annotated[
        float, Meta(ge=0, le=2, description="Temperature of /chat/completions, where a request does not say.")
    ] = 0.8
    web_top_k: Annotated[CountOrAuto, Meta(description="top_k, likewise; 0: the whole vocabulary.")] = 50
    web_max_tokens: Annotated[Count, Meta(description="max_tokens, likewise.")] = 512
    web_page: Annotated[
        bool, Meta(description="The chat page asks with these three too, where nothing is set in it.")
    ] = False
    log_conversations: Annotated[
        bool, Meta(description="Log what is asked and answered at /chat/completions, with its texts.")
    ] = False

    responses_store: Annotated[
        CountOrAuto, Meta(description="Most responses of /v1/responses that are kept, in memory; 0: none.")
    ] = 1000
    timelines: Annotated[
        int, Meta(ge=0, le=100_000, description="Requests that ended and whose timelines are kept; 0: none.")
    ] = 1024
    otlp_traces_endpoint: Annotated[
        str,
        Meta(
            description="Where spans of requests are sent by OTLP, such as http://127.0.0.1:4318/v1/traces; "
            "needs headrace[otel]."
        ),
    ] = ""
    responses_store_memory: Annotated[Size, Meta(description="Most memory of the kept responses.")] = 64 << 20
    max_background: Annotated[Count, Meta(description="Most responses that run in the background.")] = 64

    generate_do_sample: Annotated[
        bool, Meta(description="POST /generate draws tokens where a request does not say; otherwise the most likely.")
    ] = False
    generate_stop_on_eos: Annotated[bool, Meta(description="There, likewise, the end of a text ends the answer.")] = (
        True
    )
    generate_temperature: Annotated[float, Meta(ge=0, le=2, description="Its temperature, likewise.")] = 1.0
    generate_top_k: Annotated[CountOrAuto, Meta(description="Its top_k, likewise; 0: off.")] = 0
    generate_top_p: Annotated[float, Meta(ge=0, le=1, description="Its top_p, likewise; 0 and 1: off.")] = 1.0

    device: Annotated[str, Meta(description="auto, cpu, cuda, cuda:N or mps.")] = "auto"
    tp: Annotated[
        Count,
        Meta(
            description="Tensor parallel: GPUs that compute each step together, from `device` on, each with a part of "
            "the weights; on CPUs processes."
        ),
    ] = 1
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(
            description="Type of weights and KV cache; auto: quantised GGUF weights as they are, where faster on CPUs."
        ),
    ] = "auto"
    threads: Annotated[CountOrAuto, Meta(description="CPU threads of the engine; 0: chosen by it.")] = 0
    attention: Annotated[
        Literal["auto", "reference", "sdpa", "numba", "triton"],
        Meta(description="Attention backend; auto: triton on Nvidia GPUs, numba on CPUs, else sdpa."),
    ] = "auto"
    max_model_len: Annotated[
        CountOrAuto, Meta(description="Most tokens of prompt and answer together; 0: the model's own limit.")
    ] = 0
    max_seqs: Annotated[
        CountOrAuto, Meta(description="Most sequences computed at the same time; 0: 256 on a GPU, 64 on a CPU.")
    ] = 0
    max_step_tokens: Annotated[CountOrAuto, Meta(description="Most tokens of one step; 0: chosen by the engine.")] = 0
    mixed_prompt_tokens: Annotated[
        CountOrAuto,
        Meta(
            description="Most prompt tokens of a step in which others decode, unless more prompt tokens wait than one "
            "step takes; fewer give a shorter inter-token latency, more a shorter time to first token; 0: 512."
        ),
    ] = 0
    block_size: Annotated[Count, Meta(description="Tokens of one block of the KV cache.")] = 16
    kv_cache_memory: Annotated[
        Size,
        Meta(description="Memory of the KV cache, such as 2GiB, with --tp on each GPU; 0: chosen from what is free."),
    ] = 0
    gpu_memory_fraction: Annotated[
        float, Meta(gt=0, le=1, description="Share of a GPU's memory to use for weights and KV cache.")
    ] = 0.9
    prefix_caching: Annotated[bool, Meta(description="Reuse the KV cache of prompts that begin alike.")] = True

    fairness: Annotated[
        bool,
        Meta(description="Where several keys have requests in the queue, take them in turn by what each was served."),
    ] = True
    max_waiting: Annotated[Count, Meta(description="Most requests in the queue; one more gets 429.")] = 1024
    max_waiting_tokens: Annotated[Count, Meta(description="Most prompt tokens in the queue; one more gets 429.")] = (
        1 << 20
    )
    max_wait: Annotated[Seconds, Meta(description="Seconds a request may wait in the queue; 0: no limit.")] = 300.0

    migration: Annotated[
        bool,
        Meta(description="Running requests go on with the next engine when theirs dies; no: they get an error."),
    ] = True
    admin: Annotated[
        bool, Meta(description="Engines can be drained, resumed and reloaded, by headrace drain and the like.")
    ] = False
    debug_profile: Annotated[
        bool, Meta(description="POST /debug/profile gives a profiler's trace of the engine's next steps.")
    ] = False
    vllm_metric_names: Annotated[
        bool, Meta(description="Tell in /metrics what vLLM's dashboards ask for under its names too.")
    ] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe messages to log.")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Meta(description="json: nothing but JSON on standard output and error, an object a line."),
    ] = "text"


Kind = Literal["text", "integer", "number", "size", "switch", "choice"]


class Option(msgspec.Struct, frozen=True):
    """One field of Config as people see it."""

    name: str
    kind: Kind
    choices: tuple[str, ...]
    default: str | int | float | bool
    description: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def flags(self) -> str:
        """As typer wants it: a switch has its opposite."""
        return f"{self.flag}/--no-{self.flag[2:]}" if self.kind == "switch" else self.flag

    @property
    def variable(self) -> str:
        return "HEADRACE_" + self.name.upper()

    @property
    def shown_default(self) -> str:
        if self.kind == "size" and self.default:
            return format_size(int(self.default))
        if self.kind == "switch":
            return "yes" if self.default else "no"
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


CONFIG_FLAG = Option("config", "text", (), "", "TOML file with any of these options, - in names written as _.")


def options() -> list[Option]:
    """All of Config's, in its order."""
    shape = msgspec.inspect.type_info(Config)
    assert isinstance(shape, msgspec.inspect.StructType)
    return [_option(field) for field in shape.fields]


def _option(field: msgspec.inspect.Field) -> Option:
    shape, description, is_size = field.type, "", False
    while isinstance(shape, msgspec.inspect.Metadata):
        description = description or (shape.extra_json_schema or {}).get("description", "")
        is_size = is_size or bool((shape.extra or {}).get("size"))
        shape = shape.type
    choices = tuple(str(value) for value in shape.values) if isinstance(shape, msgspec.inspect.LiteralType) else ()
    return Option(field.name, "size" if is_size else _KINDS[type(shape)], choices, field.default, description)


_KINDS: dict[type, Kind] = {
    msgspec.inspect.StrType: "text",
    msgspec.inspect.IntType: "integer",
    msgspec.inspect.FloatType: "number",
    msgspec.inspect.BoolType: "switch",
    msgspec.inspect.LiteralType: "choice",
}


def load_config(
    given: Mapping[str, str | bool], file: Path | None = None, defaults: Mapping[str, Any] | None = None
) -> Config:
    """`given`: flags and variables by the name of their option, as text. `defaults`: a command's own. Raises
    ConfigError."""
    in_file = _read_file(file) if file else {}
    as_given = {name: _size_or_text(name, value, _flag(name)) for name, value in given.items()}
    values = {**(defaults or {}), **in_file, **as_given}
    preset = PRESETS.get(str(values.get("limits")), {})
    return _convert({**preset, **values}, strict=False, naming=_flag)


def config_of(options: Mapping[str, Any]) -> Config:
    """Of a Python program: by name, numbers as numbers, sizes also as text. Raises ConfigError."""
    _check_names(options, "option", "")
    values = {name: _size_or_text(name, value, name) for name, value in options.items()}
    preset = PRESETS.get(str(values.get("limits")), {})
    return _convert({**preset, **values}, strict=False, naming=str)


def log_format_of(given: Mapping[str, str | bool], file: Path | None) -> Literal["text", "json"]:
    """As far as it can be told where something else is wrong: it says how to complain of that."""
    wanted = given.get("log_format")
    if wanted is None and file is not None:
        try:
            wanted = tomllib.loads(file.read_text(encoding="utf-8")).get("log_format")
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
            return "text"
    return "json" if wanted == "json" else "text"


def _flag(name: str) -> str:
    option = next(option for option in options() if option.name == name)
    return f"{option.flag} (or {option.variable})"


def _read_file(path: Path) -> dict[str, Any]:
    def naming(name: str) -> str:
        return f"{name} in {path}"

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} is not TOML: {error}") from error
    _check_names(table, "key", f" in {path}")
    values = {name: _size_or_text(name, value, naming(name)) for name, value in table.items()}
    _convert(values, strict=True, naming=naming)  # so that an error names the file
    return values


def _check_names(given: Mapping[str, Any], what: str, where: str) -> None:
    names = [option.name for option in options()]
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key.replace("-", "_"), names, 1)
            raise ConfigError(f"unknown {what} {key!r}{where}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _size_or_text(name: str, value: Any, shown: str) -> Any:
    is_size = any(option.name == name and option.kind == "size" for option in options())
    if not is_size or not isinstance(value, str):
        return value
    try:
        return parse_size(value)
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}") from error


_AT = re.compile(r"(?P<problem>.*) - at `\$\.(?P<name>\w+)`")


def _convert(values: Mapping[str, Any], *, strict: bool, naming: Callable[[str], str]) -> Config:
    try:
        return msgspec.convert(values, Config, strict=strict)
    except msgspec.ValidationError as error:
        match = _AT.fullmatch(str(error))
        assert match, error
        name = match["name"]
        shown = "" if name in SECRETS else f", not {values[name]!r}"
        raise ConfigError(f"{naming(name)}: {_problem(match['problem'], name)}{shown}") from error


def _problem(text: str, name: str) -> str:
    choices = next(option.choices for option in options() if option.name == name)
    if choices:
        return "expected one of " + ", ".join(choices)
    return text.split(", got ")[0].replace("`", "").replace("Expected", "expected")


_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[a-z]*)")


def parse_size(text: str) -> int:
    """Bytes of 2GiB, 512 MiB, 1.5g, 1000000. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or match["unit"] not in UNITS:
        raise ValueError(f"expected a size such as 2GiB, 512MiB or a number of bytes, not {text!r}")
    return int(float(match["number"]) * UNITS[match["unit"]])


def format_size(num_bytes: int) -> str:
    """For people: 1.5 GiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        size = num_bytes / UNITS[unit.lower()]
        if size >= 1:
            return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
    return f"{num_bytes} B"
