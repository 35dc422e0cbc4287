"""What running jobs print and say of themselves, on its way to the database."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.lease import LogChunk, ProgressReport
from orchestrator.job_context import LONGEST_CHECKPOINT
from orchestrator.worker.ledger import Ledger
from orchestrator.worker.work import Work


@dataclass(slots=True)
class _Said:
    """What a job said since the last flush."""

    progress: dict[str, Any] | None = None
    checkpoint: str | None = None


class Reports:
    """Collects output and reports between flushes, so that a chatty job costs a row a flush and not a row a line."""

    def __init__(self) -> None:
        self._printing: set[Work] = set()
        self._said: dict[Work, _Said] = {}

    def note_output(self, work: Work) -> None:
        """The job printed something."""
        self._printing.add(work)

    def note_progress(self, work: Work, report: Mapping[str, Any]) -> None:
        """Keep the latest progress and checkpoint; the report is a job's, so nothing in it is trusted."""
        said = self._said.setdefault(work, _Said())
        progress, checkpoint = report.get("progress"), report.get("checkpoint")
        if isinstance(progress, dict):
            said.progress = progress
        if isinstance(checkpoint, str) and 0 < len(checkpoint) <= LONGEST_CHECKPOINT and checkpoint.isprintable():
            said.checkpoint = checkpoint

    def flush(self, ledger: Ledger, running: Iterable[Work]) -> None:
        """Hand over what there is, and what running commands wrote into their files."""
        for work in list(self._printing):
            self._flush_output(ledger, work, ended=False)
        for work in running:
            self._read_file(work)
        if self._said:
            ledger.add(progress=[_report_of(work, said) for work, said in self._said.items()])
            self._said.clear()

    def flush_last(self, ledger: Ledger, work: Work) -> None:
        """Hand over all that is left of a job that has ended; call it before its finish is added."""
        self._flush_output(ledger, work, ended=True)
        self._read_file(work)
        if work.checkpoints is not None:
            work.checkpoints.close()
        said = self._said.pop(work, None)
        if said is not None:
            ledger.add(progress=[_report_of(work, said)])

    def _read_file(self, work: Work) -> None:
        where = None if work.checkpoints is None else work.checkpoints.read()
        if where is not None:
            self.note_progress(work, {"checkpoint": where})

    def _flush_output(self, ledger: Ledger, work: Work, *, ended: bool) -> None:
        job = work.job
        assert job is not None
        self._printing.discard(work)
        chunks = job.output.drain(ended=ended)
        if chunks:
            seq, attempt = job.claimed.seq, job.claimed.attempt
            ledger.add(logs=[LogChunk(seq, attempt, job.lease_id, number, text) for number, text in chunks])


def _report_of(work: Work, said: _Said) -> ProgressReport:
    assert work.job is not None
    seq, attempt = work.job.claimed.seq, work.job.claimed.attempt
    return ProgressReport(seq, attempt, work.job.lease_id, said.progress, said.checkpoint)
