"""What running jobs print and say of their progress, on its way to the database."""

from typing import Any

from orchestrator.domain.lease import LogChunk, ProgressReport
from orchestrator.worker.ledger import Ledger
from orchestrator.worker.work import Work


class Reports:
    """Collects output and progress between flushes, so that a chatty job costs a row a flush and not a row a line."""

    def __init__(self) -> None:
        self._printing: set[Work] = set()
        self._progress: dict[Work, dict[str, Any]] = {}

    def note_output(self, work: Work) -> None:
        """The job printed something."""
        self._printing.add(work)

    def note_progress(self, work: Work, progress: dict[str, Any]) -> None:
        """Keep the latest progress."""
        self._progress[work] = progress

    def flush(self, ledger: Ledger) -> None:
        """Hand over what there is."""
        for work in list(self._printing):
            self._flush_output(ledger, work, ended=False)
        if self._progress:
            ledger.add(progress=[_progress_of(work, value) for work, value in self._progress.items()])
            self._progress.clear()

    def flush_last(self, ledger: Ledger, work: Work) -> None:
        """Hand over all that is left of a job that has ended; call it before its finish is added."""
        self._flush_output(ledger, work, ended=True)
        progress = self._progress.pop(work, None)
        if progress is not None:
            ledger.add(progress=[_progress_of(work, progress)])

    def _flush_output(self, ledger: Ledger, work: Work, *, ended: bool) -> None:
        job = work.job
        assert job is not None
        self._printing.discard(work)
        chunks = job.output.drain(ended=ended)
        if chunks:
            seq, attempt = job.claimed.seq, job.claimed.attempt
            ledger.add(logs=[LogChunk(seq, attempt, job.lease_id, number, text) for number, text in chunks])


def _progress_of(work: Work, progress: dict[str, Any]) -> ProgressReport:
    assert work.job is not None
    return ProgressReport(work.job.claimed.seq, work.job.claimed.attempt, work.job.lease_id, progress)
