"""Ends of jobs that no runner told Celery of: a time limit, a lost runner, a rejection, a cancellation.

A task that raises tells the rest of its canvas from inside its runner, as in any Celery pool. When there is no runner
left to do so, the worker does: errbacks are called, the chord hears of its part, what is behind in the chain is marked.
That can run people's code and waits for Redis, so it has a thread of its own, away from the event loop and the ledger.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.app.task import Context
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from orchestrator.domain.job import FailureClass, JobEvent, JobKind
from orchestrator.domain.lease import Finish
from orchestrator.observe import logs
from orchestrator.worker.canvas import leads_on
from orchestrator.worker.frames import Message
from orchestrator.worker.remote_error import remote_error
from orchestrator.worker.work import Work

logger = logging.getLogger(__name__)


class Untold:
    """Tells Celery's canvas machinery how jobs ended, one after another."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="canvas-ends")

    def tell(self, work: Work, finish: Finish, report: Message) -> None:
        """Take an end that was committed, if its canvas has anybody who must hear of it."""
        if report.get("meta") and finish.event is not JobEvent.CANCEL:
            return  # the runner told it
        job = work.job
        if job is None or job.claimed.kind is not JobKind.TASK:
            return
        embed = job.claimed.payload.get("embed") or {}
        if finish.event not in (JobEvent.FAIL, JobEvent.BURY, JobEvent.CANCEL):
            return
        if not (leads_on(embed) or embed.get("errbacks")):
            return
        context = _context(work, embed)
        self._thread.submit(self._tell, context, _error(work, finish, report), finish)

    def stop(self) -> None:
        """Wait for what is being told."""
        self._thread.shutdown(wait=True, cancel_futures=False)

    def _tell(self, context: Context, error: Exception, finish: Finish) -> None:
        backend = self._app.backend
        try:
            if finish.event is JobEvent.CANCEL:
                backend.mark_as_revoked(context.id, str(error), request=context, store_result=False)
            else:
                backend.mark_as_failure(context.id, error, request=context, store_result=True)
        except Exception:
            # People's errbacks run in here; the job has ended all the same, and the next one must be told.
            logger.exception(
                "what follows job %s in its canvas could not be told of its end",
                context.id,
                extra=logs.about(job_id=context.id),
            )


def _context(work: Work, embed: dict[str, Any]) -> Context:
    assert work.job is not None
    payload = work.job.claimed.payload
    headers = dict(payload.get("headers") or {})
    return Context(
        headers,
        id=work.id,
        task=work.task,
        args=payload.get("args") or [],
        kwargs=payload.get("kwargs") or {},
        callbacks=embed.get("callbacks"),
        errbacks=embed.get("errbacks"),
        chain=embed.get("chain"),
        chord=embed.get("chord"),
        delivery_info={"is_eager": False},
    )


def _error(work: Work, finish: Finish, report: Message) -> Exception:
    if finish.event is JobEvent.CANCEL:
        return TaskRevokedError("terminated")  # type: ignore[no-any-return]
    if finish.failure_class is FailureClass.TIMEOUT and work.time_limit is not None:
        return TimeLimitExceeded(work.time_limit)  # type: ignore[no-any-return]
    failure = {"state": "FAILURE", "error": finish.error or "", "error_type": "JobFailed"}
    failure["error_module"] = "orchestrator.worker.results"
    error: Exception = remote_error(
        failure | {name: report[name] for name in ("error_type",) if name in report}
    ).exception
    return error
