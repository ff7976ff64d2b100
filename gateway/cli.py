"""The command line. Here, and only here, the environment is read and errors become exit codes: 1, or 2 for usage."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from getpass import getpass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperCommand

from bench.flags import bench
from chat.flags import chat
from gateway.chat_web import command as chat_web
from gateway.config import CONFIG_FLAG, Config, ConfigError, Option, load_config, log_format_of, options
from gateway.engines.socket import EngineFailed
from gateway.errors import ModelError, ServerReplaced
from gateway.http.port import BindError
from gateway.logs import LogFormat, complain, configure_logging
from gateway.roseinfer.flags import FLAGS, UNUSED_FLAGS, translated

log = logging.getLogger("headrace.cli")
METAVARS = {"text": "TEXT", "integer": "N", "number": "X", "size": "SIZE"}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="An OpenAI-compatible server for your own language models.",
)


def main() -> None:
    app()


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib import metadata  # nobody else waits for it

        print(f"headrace {metadata.version('headrace')}")
        raise typer.Exit


def serve(**given: str | bool | None) -> None:
    """Serve a model. Each option is also a HEADRACE_* variable and a key of the --config file."""
    _serve(_typed(given))


def roseinfer(**given: str | bool | None) -> None:
    """Serve a checkpoint with the flags of roseinfer's server; POST /generate is there. All options of serve are taken
    too, and so are roseinfer's other flags, of which it is told that they have no effect."""
    try:
        values, notes = translated(_typed(given))
    except ConfigError as error:
        raise typer.Exit(_complain(str(error), 2)) from error
    _serve(values, notes=notes)


def nanochat_web(**given: str | bool | None) -> None:
    """Serve a chat model as nanochat's web server did: POST /chat/completions, /health and /stats, with its flags,
    defaults and limits. All options of headrace serve are here too."""
    _serve(_typed(given), chat_web.DEFAULTS)


def _typed(given: Mapping[str, str | bool | None]) -> dict[str, str | bool]:
    return {name: value for name, value in given.items() if value is not None}


def _serve(
    values: dict[str, str | bool],
    defaults: Mapping[str, Any] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> NoReturn:
    """notes: for the log, once there is one."""
    named = values.pop(CONFIG_FLAG.name, None)
    file = Path(str(named)) if named else None
    try:
        config = load_config(values, file, defaults)
    except ConfigError as error:
        form = log_format_of(values, file)
        configure_logging("info", form)
        raise typer.Exit(_complain(str(error), 2, form)) from error
    raise typer.Exit(_run(config, notes))


def hash_key() -> None:
    """Print what --api-key-file may hold instead of a key. The key is typed, or comes from a pipe."""
    from gateway.http.keys import KeysError, parse_key

    try:
        key = parse_key(getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline().strip())
    except KeysError as error:
        raise typer.Exit(_complain(str(error), 2)) from error
    print(f"sha256:{key.digest.hex()}")


def top(
    url: Annotated[str, typer.Option("--url", help="Of the server.", metavar="URL")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str, typer.Option("--api-key", envvar="HEADRACE_API_KEY", help="Where it asks for one.", metavar="TEXT")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Print how things stand, and exit.")] = False,
) -> None:
    """Show what a running server is doing, live. Ctrl-C ends it."""
    from gateway.dashboard import terminal
    from gateway.dashboard.reader import FeedError, read

    try:
        terminal.top(read(url.rstrip("/"), api_key), Console(), once)
    except FeedError as error:
        raise typer.Exit(_complain(str(error), 1)) from error
    except KeyboardInterrupt:
        raise typer.Exit from None


Url = Annotated[str, typer.Option("--url", help="Of the server.", metavar="URL")]
AdminKey = Annotated[
    str,
    typer.Option("--api-key", envvar="HEADRACE_API_KEY", help="Of an admin, where it asks for one.", metavar="TEXT"),
]
Number = Annotated[int, typer.Argument(help="Of the engine, from 0.", min=0)]
LOCAL = "http://127.0.0.1:8000"


def drain(
    engine: Number,
    force: Annotated[bool, typer.Option("--force", help="Also the last one that serves: requests then wait.")] = False,
    url: Url = LOCAL,
    api_key: AdminKey = "",
) -> None:
    """Take an engine of a running server out of service. What it has goes on elsewhere."""
    _ask(lambda: rolling().drain(url, api_key, engine, force))


def resume(engine: Number, url: Url = LOCAL, api_key: AdminKey = "") -> None:
    """Start an engine that was drained again."""
    _ask(lambda: rolling().resume(url, api_key, engine))


def engines(url: Url = LOCAL, api_key: AdminKey = "") -> None:
    """Print how the engines of a running server stand."""
    _ask(lambda: rolling().engines(url, api_key))


def reload(**given: str | bool | None) -> None:
    """Start the engines of a running server anew, one after another, with new weights or settings. What is not given
    stays as it was. Paths are the server's."""
    url, api_key = str(given.pop("url")), str(given.pop("api_key"))
    _ask(lambda: rolling().reload(url, api_key, _typed(given)))


def rolling() -> Any:
    from gateway.rolling import commands

    return commands


def _ask(work: Callable[[], bool | None]) -> NoReturn:
    """Exit code 1 where it did not go well."""
    from gateway.remote import RemoteError

    try:
        raise typer.Exit(1 if work() is False else 0)
    except RemoteError as error:
        raise typer.Exit(_complain(str(error), 1)) from error
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None


def _run(config: Config, notes: Sequence[str] = ()) -> int:
    # imported here: --help need not wait for the whole server
    from gateway.http.keys import KeysError
    from gateway.serve import Stopped, Surroundings, serve
    from gateway.siblings.first import GatewayFailed

    form = config.log_format
    configure_logging(config.log_level, form)
    for note in notes:
        log.warning("%s", note)
    signal.signal(signal.SIGTERM, _interrupt)  # until the event loop takes signals over
    around = Surroundings(dict(os.environ), out=Console(), progress=Console(stderr=True))
    try:
        return serve(config, around)
    except KeysError as error:
        return _complain(f"keys: {error}", 2, form)
    except ConfigError as error:
        return _complain(str(error), 2, form)
    except (ModelError, BindError, EngineFailed, GatewayFailed, ServerReplaced) as error:
        return _complain(str(error), 1, form)
    except Stopped as stopped:
        return stopped.exit_code
    except KeyboardInterrupt as interrupt:
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt(signum)


def _complain(message: str, code: int, form: LogFormat = "text") -> int:
    complain(message, form)
    return code


def _parameter(
    option: Option,
    names: Sequence[str] = (),
    default: str | None = None,
    *,
    has_variable: bool = True,
    hidden: bool = False,
) -> inspect.Parameter:
    is_switch = option.kind == "switch"
    declared = typer.Option(
        option.flags,
        *names,
        envvar=option.variable if has_variable else None,
        hidden=hidden,
        help=option.description + (f" One of {', '.join(option.choices)}." if option.choices else ""),
        show_default=(option.shown_default if default is None else default) or False,
        metavar=None if is_switch else METAVARS.get(option.kind, "NAME"),
    )
    annotation: Any = Annotated[(bool if is_switch else str) | None, declared]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Gives `command` the parameters that typer makes flags of."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _of_config() -> list[inspect.Parameter]:
    return [_parameter(option) for option in [CONFIG_FLAG, *options()]]


def _of_roseinfer() -> list[inspect.Parameter]:
    shown = [_parameter(option, has_variable=False) for option in FLAGS]
    return shown + [_parameter(option, has_variable=False, hidden=True) for option in UNUSED_FLAGS]


def _of_nanochat_web() -> list[inspect.Parameter]:
    known = chat_web.theirs_first([CONFIG_FLAG, *options()])
    return [_parameter(each, chat_web.NAMES.get(each.name, ()), chat_web.shown_default(each)) for each in known]


def _of_reload() -> list[inspect.Parameter]:
    from gateway.rolling.settings import changeable

    asked = [_parameter(each, default="", has_variable=False) for each in changeable()]
    where = inspect.signature(resume, eval_str=True).parameters
    return asked + [where[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in ("url", "api_key")]


class _Serve(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_address(args))


def with_address(args: Sequence[str]) -> list[str]:
    """--ray without an address means the cluster that this machine is part of."""
    told: list[str] = []
    for word, following in zip(args, [*args, "-"][1:], strict=True):
        told += [word, "auto"] if word == "--ray" and following.startswith("-") else [word]
    return told


app.command("serve", cls=_Serve)(_with(serve, _of_config()))
app.command("roseinfer")(_with(roseinfer, [*_of_roseinfer(), *_of_config()]))
app.command("hash-key")(hash_key)
app.command("bench")(bench)
app.command("chat")(chat)
app.command("top")(top)
app.command("engines")(engines)
app.command("drain")(drain)
app.command("resume")(resume)
app.command("reload")(_with(reload, _of_reload()))
app.command("nanochat-web")(_with(nanochat_web, _of_nanochat_web()))
