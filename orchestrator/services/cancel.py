"""Cancel a job, or a whole canvas of them, wherever they are on their way."""

import logging

from orchestrator.domain.canvas import CanvasCancelled
from orchestrator.errors import StreamUnavailable
from orchestrator.ports import CancelOutcome
from orchestrator.runtime import Runtime

logger = logging.getLogger(__name__)


class CancelService:
    """Cancels jobs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def cancel(self, job_id: str, *, by: str, reason: str = "") -> CancelOutcome:
        """Cancel a job that has not started, or ask its worker to end it; repeating it changes nothing.

        From the return on a waiting job does not start any more. The worker of a running one is told at once, and hears
        it from the database with its next lease renewal if that message is lost.

        Raises:
            UnknownJob: If there is no such job.
            StoreUnavailable: If the database does not answer.
        """
        outcome = self._runtime.jobs.request_cancel(job_id, by=by, reason=reason)
        if outcome.cancelled or outcome.stopping:
            self._tell_worker(job_id)
        return outcome

    def cancel_canvas(self, canvas_id: str, *, whole: bool, by: str, reason: str = "") -> CanvasCancelled:
        """Cancel every job of a canvas, or of one group of it and what waits for that, as ``cancel`` does.

        What they would still call is stored cancelled. Plain tasks are Celery's to revoke; they start no job any more.

        Args:
            canvas_id: Of the canvas: its root, any job of it, or its group; else of the group.
            whole: The canvas is meant, not the group.
            by: Who asks.
            reason: Why.

        Raises:
            UnknownJob: If no job has such an id, root or group.
            StoreUnavailable: If the database does not answer.
        """
        outcome = self._runtime.jobs.cancel_canvas(canvas_id, whole=whole, by=by, reason=reason)
        for job_id in outcome.stopping:  # the others' claims are refused
            if not self._tell_worker(job_id):
                break
        return outcome

    def _tell_worker(self, job_id: str) -> bool:
        try:
            self._runtime.wake.publish("cancel", job_id=job_id)
        except StreamUnavailable as error:
            words = "the worker of job %s hears of its cancellation with its next renewal: %s"
            logger.info(words, job_id, error, extra={"job_id": job_id})
            return False
        return True
