"""The spans of a job's attempt: that it waited, was claimed, ran, and that its end was committed."""

import time
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.trace import Span

from orchestrator.domain.job import JobEvent
from orchestrator.domain.lease import ClaimedJob, Finish
from orchestrator.observe import traces
from orchestrator.worker.host import Line

_WITHOUT_FAULT: Final = (JobEvent.SUCCEED, JobEvent.GIVE_BACK, JobEvent.REQUEUE)


@dataclass(eq=False, slots=True)
class AttemptTrace:
    """The spans of one attempt; ``traceparent`` is what the job's own spans join."""

    traceparent: str
    run: Span

    def end(self, finish: Finish) -> None:
        """Its end is committed."""
        details: dict[str, Any] = {"outcome": finish.event.value, "exit_code": finish.exit_code}
        details["failure_class"] = finish.failure_class.value if finish.failure_class else None
        attributes = {f"orchestrator.{name}": value for name, value in details.items() if value is not None}
        at = finish.ended_at.timestamp() if finish.ended_at else time.time()
        error = None if finish.event in _WITHOUT_FAULT else details["failure_class"] or finish.event.value
        traces.end_run(self.run, at=at, error=error, attributes=attributes)


def begin(claimed: ClaimedJob, line: Line, node: str) -> AttemptTrace | None:
    """Begin the spans of a claimed job; None when it was submitted in no trace."""
    if claimed.traceparent is None:
        return None
    attributes: dict[str, Any] = {
        "orchestrator.job_id": claimed.id,
        "orchestrator.job_name": claimed.name,
        "orchestrator.queue": claimed.queue,
        "orchestrator.tenant": claimed.tenant,
        "orchestrator.attempt": claimed.attempt,
        "orchestrator.token": line.lease_id,
        "orchestrator.node": node,
        "orchestrator.gpus": list(line.grant.gpus),
    }
    since = claimed.ready_at.timestamp() if claimed.ready_at is not None else 0.0
    claim_seconds = time.monotonic() - line.asked_at
    run = traces.begin_run(claimed.traceparent, waiting_since=since, claim_seconds=claim_seconds, attributes=attributes)
    return AttemptTrace(traces.traceparent_of(run) or claimed.traceparent, run)
