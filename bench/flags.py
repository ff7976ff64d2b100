"""The flags of headrace bench. Imported for every --help of headrace, so it imports nothing that takes long."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields
from typing import Annotated, get_type_hints

import typer

HERE = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Flags:
    """As they were typed."""

    url: Annotated[str, typer.Argument(metavar="[URL]", help="The server, with or without /v1.")] = HERE
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Default: the first of GET /v1/models.", show_default=False)
    ] = ""
    endpoint: Annotated[str, typer.Option(metavar="NAME", help="chat or completions.")] = "completions"
    api_key: Annotated[
        str, typer.Option(envvar="OPENAI_API_KEY", metavar="KEY", help="For the server at URL.", show_default=False)
    ] = ""

    concurrency: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Closed loop: so many requests in flight. Default: 1,8,32.")
    ] = ""
    rate: Annotated[str, typer.Option(metavar="R[,R...]", help="Open loop: so many requests a second, Poisson.")] = ""
    burstiness: Annotated[
        float, typer.Option(metavar="X", help="With --rate: variance of the gaps; 1: Poisson, 0: even.")
    ] = 1.0
    bursts: Annotated[int, typer.Option(metavar="N", help="With --rate: requests come N at one moment.")] = 1
    trace: Annotated[
        str, typer.Option(metavar="FILE", help='Replays lines of {"at": s, "input_len": N, "output_len": N}.')
    ] = ""
    speed: Annotated[str, typer.Option(metavar="X[,X...]", help="With --trace: times as fast.")] = "1"
    requests: Annotated[
        int,
        typer.Option(
            metavar="N", help="Of each level. Default: 16, or 4 a stream, or 30 s of them.", show_default=False
        ),
    ] = 0
    warmup: Annotated[int, typer.Option(metavar="N", help="Requests before, all at once, that do not count.")] = 1

    input_len: Annotated[str, typer.Option(metavar="N|LOW:HIGH", help="Tokens of each prompt.")] = "128"
    output_len: Annotated[str, typer.Option(metavar="N|LOW:HIGH", help="Tokens of each answer.")] = "128"
    shared_prefix: Annotated[int, typer.Option(metavar="N", help="Tokens before them, the same in all prompts.")] = 0
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos/--no-ignore-eos", help="Ask for answers of full length.")
    ] = True
    extra_body: Annotated[
        str, typer.Option(metavar="JSON", help="Merged into every request; null takes a field out.")
    ] = ""
    seed: Annotated[
        str, typer.Option(metavar="N", help="Default: drawn, so that no cache knows the prompts.", show_default=False)
    ] = ""
    timeout: Annotated[float, typer.Option(metavar="S", help="Seconds for each request.")] = 600.0
    keep_alive: Annotated[
        bool, typer.Option("--keep-alive/--no-keep-alive", help="Use connections again, or one for each request.")
    ] = True

    slo: Annotated[
        str, typer.Option(metavar="ttft=MS,tpot=MS,e2e=MS", help="What goodput counts: requests within all of them.")
    ] = ""
    compare: Annotated[str, typer.Option(metavar="URL", help="A second server, in turn with the first.")] = ""
    compare_model: Annotated[str, typer.Option(metavar="NAME", help="Its model.", show_default=False)] = ""
    compare_api_key: Annotated[
        str, typer.Option(envvar="HEADRACE_COMPARE_API_KEY", metavar="KEY", help="For that server.", show_default=False)
    ] = ""
    rounds: Annotated[int, typer.Option(metavar="N", help="Default: 1, or 3 with --compare.", show_default=False)] = 0
    output: Annotated[str, typer.Option(metavar="FILE", help="Keeps the JSON of the last line.")] = ""
    plot: Annotated[str, typer.Option(metavar="FILE", help="Latency against load, as .html, .svg or .png.")] = ""


def bench(**given: str | int | float | bool) -> None:
    """Measure an OpenAI-compatible server. A table, and one last line of JSON."""
    from bench.run import main  # --help does without it

    raise typer.Exit(main(Flags(**given), sys.argv))  # type: ignore[arg-type]


def _signature() -> inspect.Signature:
    hints, kind = get_type_hints(Flags, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter(each.name, kind, default=each.default, annotation=hints[each.name])
            for each in fields(Flags)
        ]
    )


SIGNATURE = _signature()
bench.__signature__ = SIGNATURE  # type: ignore[attr-defined]
bench.__annotations__ = {name: parameter.annotation for name, parameter in SIGNATURE.parameters.items()}
