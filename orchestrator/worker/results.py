"""The result backend of jobs: Celery's Redis backend, but a job's result is written only after its finish is committed.

In a runner the result of the job that runs there is captured instead of stored; the worker commits the finish under the
fencing token and then writes what was captured, so a superseded runner's result never reaches a caller. Members of a
chord are stored at once, because Celery counts the chord's parts in the same step; their finish is fenced all the same.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from celery import states
from celery.backends.redis import RedisBackend, ResultConsumer

from orchestrator.domain.job import TERMINAL_STATES, Job, JobEvent, JobState
from orchestrator.domain.lease import Finish
from orchestrator.domain.retry import class_of_exception
from orchestrator.errors import StoreUnavailable
from orchestrator.observe.logs import about
from orchestrator.ports import JobFilter

logger = logging.getLogger(__name__)

#: How often, and about how many at a time, the database is asked for results that do not come.
LOOK_SECONDS: Final = 2.0
LOOK_BATCH: Final = 500
#: The result of a job that ended so recently is on its way, with more in it than the database knows.
SETTLING: Final = timedelta(seconds=2)

_CELERY_STATES = {
    JobState.SUCCEEDED: states.SUCCESS,
    JobState.FAILED: states.FAILURE,
    JobState.DEAD_LETTER: states.FAILURE,
    JobState.CANCELLED: states.REVOKED,
    JobState.RUNNING: states.STARTED,
}


#: The result of a job that a plain task replaced: that task stores the one that callers wait for.
REPLACED: Final = {"replaced": "by a plain task, which gives the result"}


@dataclass(slots=True)
class Capture:
    """What Celery wanted to store for the job that runs in this process."""

    job_id: str
    final: frozenset[str] | None = None  # classes of failures that no further attempt follows; None: all
    meta: str | None = None
    value: Any = None


_capture: Capture | None = None


def capture_results_of(job_id: str | None, *, final: frozenset[str] | None = None) -> Capture | None:
    """Capture the results of this job from now on, in place of storing them; None ends it."""
    global _capture  # noqa: PLW0603 - one attempt at a time runs in a process
    _capture = Capture(job_id, final) if job_id is not None else None
    return _capture


class JobResultConsumer(ResultConsumer):
    """Celery's listener for results, which now and then asks the database about jobs whose results do not come.

    A job that is cancelled while it waits ends in the database alone, and a result may be lost with Redis.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._looked_at = time.monotonic()
        self._seen_ended: frozenset[str] = frozenset()

    def drain_events(self, timeout: float | None = None) -> None:
        """Take what comes; look into the database every few seconds."""
        super().drain_events(timeout)
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._look()
            self._looked_at = time.monotonic()

    def _look(self) -> None:
        open_runtime = getattr(self.backend.app, "orchestrator_runtime", None)
        prefix = self.backend.task_keyprefix
        keys = list(self.subscribed_to)
        ids = [key[len(prefix) :].decode() for key in keys if isinstance(key, bytes) and key.startswith(prefix)]
        if open_runtime is None or not ids:
            return
        ended: set[str] = set()
        try:
            for part in (ids[first : first + LOOK_BATCH] for first in range(0, len(ids), LOOK_BATCH)):
                found = open_runtime().jobs.list_jobs(
                    JobFilter(ids=frozenset(part), states=TERMINAL_STATES, limit=LOOK_BATCH)
                )
                ended |= {job.id for job in found}
        except StoreUnavailable as error:
            logger.warning("cannot ask the database for results: %s", error)
            return
        # What ended a moment ago has its result on the way, with more in it than the database knows.
        for job_id in ended & self._seen_ended:
            self.on_state_change(self.backend._get_task_meta_for(job_id), None)
        self._seen_ended = frozenset(ended)


class JobBackend(RedisBackend):
    """Celery's Redis backend with captured job results, and the database behind it when Redis was emptied."""

    ResultConsumer = JobResultConsumer

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Store a result as Celery does, or capture it when it is the running job's own."""
        capture = _capture
        if capture is None or capture.job_id != task_id or getattr(request, "chord", None):
            return super().store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        encoded = self.encode_result(result, state)
        meta = self._get_result_meta(result=encoded, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        capture.meta, capture.value = self.encode(meta), encoded
        return encoded

    def mark_as_failure(self, task_id: str, exc: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell the canvas of a failure, unless it is a running job's that has attempts left."""
        final = _capture.final if _capture is not None and _capture.job_id == task_id else None
        if final is not None and class_of_exception(type(exc).__name__) not in final:
            return None
        return super().mark_as_failure(task_id, exc, *args, **kwargs)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        meta: dict[str, Any] = super()._get_task_meta_for(task_id)
        if meta["status"] != states.PENDING:
            return meta
        open_runtime = getattr(self.app, "orchestrator_runtime", None)
        if open_runtime is None:
            return meta
        try:
            runtime = open_runtime()
            job = runtime.jobs.get(task_id)
        except StoreUnavailable as error:
            logger.warning("cannot ask the database for job %s: %s", task_id, error, extra=about(job_id=task_id))
            return meta
        if job is None or (job.finished_at is not None and runtime.clock.now() - job.finished_at < SETTLING):
            return meta
        return _meta_of(job, meta)


def _meta_of(job: Job, unknown: dict[str, Any]) -> dict[str, Any]:
    state = _CELERY_STATES.get(job.state)
    if state is None or (job.state is JobState.SUCCEEDED and job.result == REPLACED):
        return unknown
    result = job.result
    if state in states.EXCEPTION_STATES:
        words = [job.error or job.reason or ""]
        result = {"exc_type": "JobFailed", "exc_message": words, "exc_module": __name__}
        if state == states.REVOKED:
            result = {"exc_type": "TaskRevokedError", "exc_message": words, "exc_module": "celery.exceptions"}
    return {"status": state, "result": result, "traceback": None, "children": [], "task_id": job.id}


class JobFailed(Exception):
    """The job did not succeed; the message is the recorded error."""


class ResultWriter:
    """Holds captured results until their finish is committed, then writes them in one round trip."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._held: dict[tuple[int, int], tuple[str, str]] = {}

    def hold(self, seq: int, attempt: int, *, job_id: str, meta: str) -> None:
        """Keep the result of an attempt that is about to be committed."""
        self._held[seq, attempt] = (job_id, meta)

    def meta_of(self, job_id: str, finish: Finish) -> str | None:
        """Return what to store for a job that no runner stored a result for; None while more attempts follow."""
        if finish.event is JobEvent.SUCCEED:
            state, result = states.SUCCESS, finish.result
        elif finish.event in (JobEvent.FAIL, JobEvent.BURY):
            state, result = (
                states.FAILURE,
                self._backend.prepare_exception(JobFailed(finish.error or finish.event.value)),
            )
        else:
            return None
        meta = self._backend._get_result_meta(result=result, state=state, traceback=None, request=None)
        encoded: str = self._backend.encode(meta | {"task_id": job_id})
        return encoded

    def write(self, finishes: Sequence[Finish], stale: Sequence[Finish]) -> None:
        """Write the results of the finishes that took effect and forget the others; runs in the ledger thread."""
        refused = {(finish.job_seq, finish.attempt) for finish in stale}
        ready = []
        for finish in finishes:
            key = (finish.job_seq, finish.attempt)
            held = self._held.pop(key, None)
            if held is not None and key not in refused:
                ready.append(held)
        if not ready:
            return
        backend = self._backend
        try:
            with backend.client.pipeline(transaction=False) as pipeline:
                for job_id, meta in ready:
                    key = backend.get_key_for_task(job_id)
                    pipeline.set(key, meta, ex=backend.expires)
                    pipeline.publish(key, meta)
                pipeline.execute()
        except backend.connection_errors as error:
            # The rows hold the results: JobBackend finds them there.
            logger.warning("%d results are in the database only, Redis does not answer: %s", len(ready), error)
