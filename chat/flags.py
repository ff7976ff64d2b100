"""The flags of headrace chat. Imported for every --help of headrace, so it imports nothing that takes long."""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import dataclass, fields
from typing import Annotated, get_type_hints

import typer


@dataclass(frozen=True, slots=True)
class Flags:
    """As they were typed; None: not given."""

    url: Annotated[
        str | None, typer.Option(metavar="URL", help="A server, with or without /v1. Default: one is started for this.")
    ] = None
    api_key: Annotated[
        str | None, typer.Option(envvar="HEADRACE_API_KEY", metavar="KEY", help="For the server at --url.")
    ] = None
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="As of headrace serve; with --url: a name that it knows.")
    ] = None
    source: Annotated[
        str | None, typer.Option("--source", "-i", metavar="NAME", help="Of nanochat's models: base, mid, sft or rl.")
    ] = None
    model_tag: Annotated[
        str | None, typer.Option("--model-tag", "-g", metavar="TAG", help="Of nanochat's models, such as d20.")
    ] = None
    step: Annotated[
        int | None, typer.Option("--step", "-s", metavar="N", min=0, help="Of nanochat's models. Default: the last.")
    ] = None
    device_type: Annotated[
        str | None, typer.Option("--device-type", metavar="NAME", help="cuda, cpu or mps. Default: the best there is.")
    ] = None
    dtype: Annotated[
        str | None, typer.Option("--dtype", "-d", metavar="NAME", help="float32, bfloat16 or float16.")
    ] = None

    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Print the answer to this, and exit.")
    ] = None
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", metavar="X", help="Default: 0.6; with --url: the server's."),
    ] = None
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", metavar="N", help="Default: 50; with --url: the server's.")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Of an answer. Default: until the model ends it.")
    ] = None
    history: Annotated[bool, typer.Option("--history/--no-history", help="Keep what is typed for the next time.")] = (
        True
    )


def chat(**given: str | int | float | bool | None) -> None:
    """Talk to a model, in a terminal or through a pipe."""
    from chat.run import Surroundings, main  # --help does without it

    around = Surroundings(os.environ, sys.stdin, sys.stdout, sys.stderr)
    raise typer.Exit(main(Flags(**given), around))  # type: ignore[arg-type]


def _signature() -> inspect.Signature:
    hints, kind = get_type_hints(Flags, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter(each.name, kind, default=each.default, annotation=hints[each.name])
            for each in fields(Flags)
        ]
    )


SIGNATURE = _signature()
chat.__signature__ = SIGNATURE  # type: ignore[attr-defined]
chat.__annotations__ = {name: parameter.annotation for name, parameter in SIGNATURE.parameters.items()}
