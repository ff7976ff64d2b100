"""Timelines as OpenTelemetry spans, sent by OTLP over HTTP: one for the request, with three inside it.

    server span   |---------------------------------------------------------|
    children      | prepare |  until the first token  |       decode        |

Names and attributes follow OpenTelemetry's conventions for generative AI; causes are attributes of the server span, in
milliseconds, since most are not one stretch of time. A `traceparent` header (W3C) is continued. Needs the packages of
`pip install "headrace[otel]"`. Spans are made on the event loop and sent by a thread; what cannot be sent in time, the
library drops and logs.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.timeline.laps import FIRST_TOKEN
from gateway.timeline.store import Timeline

OPERATIONS = {"chat": "chat", "messages": "chat", "responses": "chat", "background": "chat", "embeddings": "embeddings"}
COMPLETION = "text_completion"
MAX_QUEUED = 4096  # spans
SEND_S = 10.0
FAILED = frozenset({"error", "unavailable", "expired"})  # outcomes that are the server's fault
Attributes = dict[str, str | int | float | bool]


class Spans:
    def __init__(self, exporter: SpanExporter, model: str, version: str) -> None:
        self._model = model
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "headrace", "service.version": version}),
            shutdown_on_exit=False,  # close() does
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED))
        self._tracer = self._provider.get_tracer("headrace", version)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str, model: str, version: str) -> Spans:
        """endpoint: of the collector, such as http://127.0.0.1:4318/v1/traces."""
        return cls(OTLPSpanExporter(endpoint=endpoint, timeout=SEND_S), model, version)

    def add(self, timeline: Timeline, trace_headers: Mapping[str, str]) -> None:
        """trace_headers: traceparent and tracestate, as far as the client sent them."""
        began, ended = timeline.started, timeline.started + timeline.total_ms / 1000
        operation = OPERATIONS.get(timeline.endpoint, COMPLETION)
        parent = self._propagator.extract(dict(trace_headers), context=context.Context())
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            attributes=self._attributes(timeline, operation),
            start_time=_ns(began),
        )
        for event in timeline.events:
            span.add_event(event.name, timestamp=_ns(began + event.at_ms / 1000))
        if timeline.outcome in FAILED:
            span.set_status(trace.Status(trace.StatusCode.ERROR, timeline.outcome))
            span.set_attribute("error.type", timeline.outcome)
        self._add_parts(span, timeline)
        span.end(_ns(ended))

    def _attributes(self, timeline: Timeline, operation: str) -> Attributes:
        found: Attributes = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "headrace",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.usage.input_tokens": timeline.prompt_tokens,
            "gen_ai.usage.output_tokens": timeline.generated_tokens,
            "gen_ai.usage.cache_read.input_tokens": timeline.cached_tokens,
            "http.response.status_code": timeline.status,
            "headrace.request_id": timeline.id,
            "headrace.outcome": timeline.outcome or "",
        }
        if timeline.outcome in ("stop", "length"):
            found["gen_ai.response.finish_reasons"] = timeline.outcome
        if timeline.ttft_ms is not None:
            found["gen_ai.server.time_to_first_token"] = timeline.ttft_ms / 1000
        return found | {f"headrace.{spent.cause}_ms": spent.ms for spent in timeline.causes}

    def _add_parts(self, span: trace.Span, timeline: Timeline) -> None:
        at_ms = {event.name: event.at_ms for event in reversed(timeline.events)}
        engine, first = at_ms.get("engine"), at_ms.get(FIRST_TOKEN)
        end = at_ms.get("slow_reader", timeline.total_ms)
        parts = [("prepare", 0.0, engine), ("until the first token", engine, first), ("decode", first, end)]
        inside = trace.set_span_in_context(span, context.Context())
        for name, start_ms, end_ms in parts:
            if start_ms is not None and end_ms is not None:
                part = self._tracer.start_span(name, context=inside, start_time=_ns(timeline.started + start_ms / 1000))
                part.end(_ns(timeline.started + end_ms / 1000))

    def close(self) -> None:
        """Sends what is there. Where the collector does not answer this takes as many attempts as there are batches:
        for a thread that nobody waits for."""
        self._provider.shutdown()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
