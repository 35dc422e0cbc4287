"""What running jobs use of their GPUs' memory: measured for all, and held to what they have for those that share."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from orchestrator.domain.cluster import GpuSample
from orchestrator.domain.gpu_memory import Holding, MemoryPolicy, MemoryWatch, Told, Verdict
from orchestrator.domain.job import FailureClass
from orchestrator.domain.lease import JobNote
from orchestrator.worker.processes import RunnerProcess
from orchestrator.worker.runners import Runners
from orchestrator.worker.work import Work, about

logger = logging.getLogger(__name__)

#: From TERM to KILL: the neighbours' memory is at stake, and the job was warned.
GRACE_SECONDS: Final = 1.0


class MemoryGuard:
    """Tells the jobs of one worker what its watch finds, in their own output, and ends those that are to end."""

    def __init__(self, policy: MemoryPolicy) -> None:
        self._policy, self._watch = policy, MemoryWatch(policy)

    def look(
        self, now: float, runners: Runners | None, samples: Sequence[GpuSample], note: Callable[[JobNote], None]
    ) -> list[Work]:
        """Take in one reading; return the jobs whose output has grown.

        Args:
            now: Monotonic instant of the reading, in seconds.
            runners: Those of this worker.
            samples: Of every GPU of this host, with the runner of each process.
            note: Writes down what happened to a job.
        """
        if runners is None:
            return []
        used = use_by_runner(samples)
        running: dict[str, tuple[RunnerProcess, Work]] = {}
        holdings = []
        for runner in runners:
            work = runner.front
            if work is None or work.job is None or work.begun_at is None or not runner.key.gpus:
                continue
            running[work.id] = (runner, work)
            mib = used.get(runner.id, 0)
            work.peak_gpu_mib = max(mib, work.peak_gpu_mib or 0) or None
            holdings.append(Holding(work.id, mib, work.job.line.grant.memory_mib))
        told = []
        for verdict in self._watch.look(now, holdings):
            runner, work = running[verdict.key]
            self._tell(work, verdict, note)
            if verdict.verdict is Verdict.END:
                work.condemned = (FailureClass.VRAM_EXCEEDED, _words(verdict))
                runners.end(runner, grace_seconds=GRACE_SECONDS)
            told.append(work)
        return told

    def _tell(self, work: Work, told: Told, note: Callable[[JobNote], None]) -> None:
        assert work.job is not None
        words = _words(told)
        logger.warning("job %s: %s", work.id, words, extra=about(work))
        if told.verdict is Verdict.END:
            after = "the job is ended"
        else:
            after = f"it is ended at the next reading that shows over {told.share_mib + self._policy.tolerance_mib} MiB"
            data = {"used_mib": told.used_mib, "share_mib": told.share_mib}
            claimed = work.job.claimed
            note(JobNote(claimed.seq, claimed.attempt, work.job.lease_id, "vram_warned", data))
        work.job.output.feed(f"\norchestrator: {words}; {after}\n".encode())


def use_by_runner(samples: Sequence[GpuSample]) -> Mapping[str, int]:
    """Return what each runner's processes use, of all GPUs together, in MiB."""
    used: dict[str, int] = {}
    for sample in samples:
        for process in sample.processes:
            if process.runner is not None:
                used[process.runner] = used.get(process.runner, 0) + process.used_mib
    return used


def _words(told: Told) -> str:
    return f"it uses {told.used_mib} MiB of GPU memory, its share is {told.share_mib} MiB"
