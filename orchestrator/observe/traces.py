"""Traces of jobs, in OpenTelemetry's terms: submit → queue → claim → run → finish, joined by the job's ``traceparent``.

A submit that comes with a trace context, or is made in one, stores it with the job (W3C Trace Context). Without a
set-up nothing is recorded, but the context still travels: a job's own spans join the trace of its submitter. With
``traces = true`` the processes of the installation send spans of their own by OTLP; where to, the standard
``OTEL_EXPORTER_OTLP_*`` variables say.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from orchestrator.errors import InvalidSettings

HEADER: Final = "traceparent"
#: Of a command's environment, as other tools name it.
VARIABLE: Final = "TRACEPARENT"
#: Characters of a ``traceparent``.
LENGTH: Final = 55
_W3C: Final = TraceContextTextMapPropagator()
_tracer: Final = trace.get_tracer("gpu-orchestrator")


class Exporter:
    """What sends this process's spans; nothing when traces are off."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def set_up(enabled: bool, *, host: str, process: str) -> Exporter:
    """Have this process send its spans, if traces are on; call it once, where threads may be started.

    Raises:
        InvalidSettings: If traces are on and what sends them is not installed.
    """
    if not enabled:
        return Exporter(None)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidSettings([f"traces: {error.name} is missing; install gpu-orchestrator[otel]"]) from error
    resource = Resource.create({"service.name": f"gpu-orchestrator-{process}", "host.name": host})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return Exporter(provider)


def current() -> str | None:
    """Return the trace context that the caller is in, if any."""
    return traceparent_of(trace.get_current_span())


def traceparent_of(span: Span) -> str | None:
    """Return a span's context as a header; None if it is of no trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span))
    return carrier.get(HEADER)


@contextmanager
def submitting(parent: str | None) -> Iterator[str | None]:
    """Record a submit; gives the context to store with the job. One that is malformed counts as none."""
    with _tracer.start_as_current_span("submit", _context(parent), SpanKind.SERVER) as span:
        yield traceparent_of(span)


def begin_run(parent: str, *, waiting_since: float, claim_seconds: float, attributes: dict[str, Any]) -> Span:
    """Record that a job waited and was claimed by now, and begin the span of its attempt.

    Args:
        parent: What was stored with the job.
        waiting_since: Since when it could have started, in seconds since the epoch.
        claim_seconds: How long ago its claim was sent to the database.
        attributes: Of the three spans.
    """
    context, now = _context(parent), time.time_ns()
    asked = now - int(claim_seconds * 1e9)
    since = min(asked, int(waiting_since * 1e9))  # the database's clock may be ahead of this host's
    _tracer.start_span("queue", context, SpanKind.CONSUMER, attributes, start_time=since).end(asked)
    _tracer.start_span("claim", context, SpanKind.CLIENT, attributes, start_time=asked).end(now)
    return _tracer.start_span("run", context, SpanKind.CONSUMER, attributes, start_time=now)


def end_run(span: Span, *, at: float, error: str | None, attributes: dict[str, Any]) -> None:
    """End the span of an attempt, and record that its end has been committed by now.

    Args:
        span: What ``begin_run`` returned.
        at: When it ended, in seconds since the epoch.
        error: How it failed, in a word.
        attributes: More of them.
    """
    ended, now = int(at * 1e9), time.time_ns()
    span.set_attributes(attributes)
    if error is not None:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(ended)
    _tracer.start_span("finish", trace.set_span_in_context(span), start_time=min(ended, now)).end(now)


def sanitized(traceparent: object) -> str | None:
    """Return a trace context that came from outside; None if it is none."""
    parent = traceparent if isinstance(traceparent, str) else None
    return traceparent_of(trace.get_current_span(_context(parent)))


def _context(parent: str | None) -> Context:
    return _W3C.extract({HEADER: parent} if parent else {}, Context())
