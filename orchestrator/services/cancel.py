"""Cancel a job, wherever it is on its way."""

import logging

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
            try:
                self._runtime.wake.publish("cancel", job_id=job_id)
            except StreamUnavailable as error:
                logger.info("the worker of job %s hears of its cancellation with its next renewal: %s", job_id, error)
        return outcome
