"""From a body to a job for the engine and the form of its answer. Blocking: large ones run in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import ApiError
from gateway.requests.convert import Job
from gateway.requests.explain import Explained
from gateway.requests.parse import decode, invalid, parse
from gateway.requests.prepare import OFF_LOOP, Prepared, cost, plan_chat
from gateway.responses import convert
from gateway.responses.convert import Checked
from gateway.responses.items import Bounds, ItemReader, check_call_outputs
from gateway.responses.output import Output
from gateway.responses.store import Record, Store, new_record
from gateway.responses.truncation import plan_truncated
from gateway.responses.turns import Sourced, messages
from gateway.responses.types import Item, Nested, ReasoningShape, Response, ResponseRequest, TextShape
from gateway.responses.wire import ResponsesWire
from gateway.services import Services

_MAX_ITEMS = 10_000
_GOES_BACK = (b'"previous_response_id"', b'"item_reference"', b'"id"')


@dataclass(frozen=True, slots=True)
class PreparedResponse:
    prepared: Prepared
    wire: ResponsesWire
    background: bool


@dataclass(frozen=True, slots=True)
class Planned:
    """A request, checked and in the engine's terms."""

    request: ResponseRequest
    checked: Checked
    ignored: list[str]
    unique: str  # of which all ids are made
    items: list[Item]  # of the input
    job: Job
    explained: Explained


def response_cost(body: bytes) -> int:
    """A short body may go back to a long conversation."""
    goes_back = any(word in body for word in _GOES_BACK)
    return max(cost(body), OFF_LOOP if goes_back else 0)


def prepare_response(body: bytes, services: Services, store: Store, owner: str | None) -> PreparedResponse:
    planned = plan_response(body, services, store, owner)
    request = planned.request
    stored = request.store is not False and store.is_on
    if not store.is_on:
        _check_unstored(request, planned.ignored)
    base = _base(planned, services, stored)
    record = new_record(base.id, owner, planned.items) if stored else None

    def keep(response: Response) -> None:
        if record is not None:
            store.put(record.with_response(response))

    wire = ResponsesWire(
        base=base,
        tokenizer=services.model.tokenizer,
        logprobs=planned.checked.logprobs,
        keep=keep,
        now=services.wall_clock,
        output=Output(planned.unique),
    )
    prepared = Prepared(planned.job, wire, planned.ignored, bool(request.stream), planned.explained)
    return PreparedResponse(prepared, wire, bool(request.background))


def _check_unstored(request: ResponseRequest, ignored: list[str]) -> None:
    if request.background:
        raise invalid("background", "background needs a store, and this server has none.", "conflicting_parameters")
    if request.store:
        ignored.append("store")


def plan_response(body: bytes, services: Services, store: Store, owner: str | None) -> Planned:
    parsed = parse(body, ResponseRequest, convert.MISNAMED)
    request, ignored = parsed.request, parsed.ignored
    checked = convert.check(request, decode(body, Nested), ignored)
    unique = f"{services.random_bits(96):024x}"
    history = _history(request.previous_response_id, store, owner)
    items = ItemReader(store, owner, unique, ignored, _bounds(services)).read(request.input)
    check_call_outputs(history, items)
    turns = _turns(request, history, items)
    job, explained = _plan(request, checked, turns, ignored, services)
    return Planned(request, checked, ignored, unique, items, job, explained)


def _bounds(services: Services) -> Bounds:
    """Several items may make one message, whose number is checked later."""
    settings = services.settings
    return Bounds(max(_MAX_ITEMS, settings.max_messages), settings.max_body_bytes)


def _turns(request: ResponseRequest, history: Sequence[Item], items: Sequence[Item]) -> list[Sourced]:
    """Instructions hold for one response: those of the ones before are gone."""
    first = [Sourced({"role": "system", "content": request.instructions}, "instructions")]
    is_text = isinstance(request.input, str)
    here = [(item, "input" if is_text else f"input[{index}]") for index, item in enumerate(items)]
    before = [(item, "previous_response_id") for item in history]
    return [*(first if request.instructions else []), *messages([*before, *here])]


def _plan(
    request: ResponseRequest, checked: Checked, turns: Sequence[Sourced], ignored: list[str], services: Services
) -> tuple[Job, Explained]:
    told: dict[str, None] = {}

    def plan(kept: Sequence[Sourced]) -> tuple[Job, Explained]:
        without_effect: list[str] = []
        try:
            planned = plan_chat(convert.chat_request(request, checked, kept), without_effect, services)
        except ApiError as error:
            raise convert.renamed_error(error, kept) from None
        told.update(dict.fromkeys(convert.renamed_all(without_effect, kept)))
        return planned

    planned = plan_truncated(plan, turns) if request.truncation == "auto" else plan(turns)
    ignored += told
    return planned


def _history(response_id: str | None, store: Store, owner: str | None) -> list[Item]:
    """What was said before, from the first response on."""
    found: list[Record] = []
    where = "previous_response_id"
    asked = response_id
    while response_id is not None:
        record = store.get(response_id, owner)
        if record is None:
            message = f"The previous response '{response_id[:100]}' is not stored here."
            if response_id != asked:
                message += f" '{(asked or '')[:100]}' goes back to it."
            raise ApiError(404, message, param=where, code="previous_response_not_found")
        found.append(record)
        response = record.response
        if response.status in ("queued", "in_progress"):
            raise invalid(where, f"The response '{response_id}' has not ended yet.", "invalid_value")
        response_id = response.previous_response_id
    return [item for record in reversed(found) for item in record.items]


def _base(planned: Planned, services: Services, stored: bool) -> Response:
    request, params = planned.request, planned.job.params[0]
    given = None if request.text is None else request.text.format
    effort = None if request.reasoning is None else request.reasoning.effort
    choice = request.tool_choice
    return Response(
        id=f"resp_{planned.unique}",
        created_at=int(services.wall_clock()),
        model=services.model.name,
        status="in_progress",
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        reasoning=ReasoningShape(effort),
        store=stored,
        temperature=params.temperature if request.temperature is None else request.temperature,
        text=TextShape(given or {"type": "text"}),
        tool_choice="auto" if choice is None else choice,
        tools=planned.checked.tools,
        top_logprobs=request.top_logprobs or 0,
        top_p=params.top_p if request.top_p is None else request.top_p,
        truncation=request.truncation or "disabled",
    )
