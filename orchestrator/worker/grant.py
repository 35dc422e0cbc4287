"""A claim that came back granted, on its way through Celery to the pool."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.domain.lease import ClaimedJob
from orchestrator.worker.host import Line
from orchestrator.worker.work import Callbacks, Work

if TYPE_CHECKING:
    from orchestrator.worker.dispatch import Dispatcher
    from orchestrator.worker.pool import RunnerPool


@dataclass(frozen=True, slots=True)
class Grant:
    """Waits for Celery to ask the pool to run the request."""

    dispatcher: "Dispatcher"
    line: Line
    claimed: ClaimedJob

    def accept(self, pool: "RunnerPool", request: dict[str, Any], callbacks: Callbacks) -> Work:
        """Turn the request into work of the line."""
        return self.dispatcher.accept(self.line, self.claimed, request, callbacks)
