"""How busy the GPUs of running jobs are, summed up from samples."""

from collections.abc import Iterable, Sequence

from orchestrator.domain.cluster import GpuSample
from orchestrator.domain.job import LeaseMode
from orchestrator.domain.lease import LeaseGrant, Measured
from orchestrator.worker.work import Work


class BusyMeter:
    """Adds each sample, for the time since the one before, to the jobs that run.

    A driver tells how busy a GPU is, not with whom: a share counts as its part of that, as it does of what is leased.
    So the jobs on one GPU are never busier together than it was.
    """

    def __init__(self) -> None:
        self._last: float | None = None  # monotonic

    def note(self, now: float, running: Iterable[Work], samples: Sequence[GpuSample]) -> None:
        """Take in one reading.

        Args:
            now: Monotonic instant of the reading, in seconds.
            running: The jobs that run.
            samples: Of the host's GPUs; one whose utilization is not known adds nothing.
        """
        last, self._last = self._last, now
        known = {sample.gpu.uuid: sample for sample in samples if sample.utilization_percent is not None}
        for work in running:
            if work.job is None or work.begun_at is None:
                continue
            seconds = now - max(work.begun_at, now if last is None else last)
            grant = work.job.line.grant
            loads = [_load(known[uuid], grant) for uuid in grant.gpus if uuid in known]
            if loads and seconds > 0:
                work.busy_seconds = (work.busy_seconds or 0.0) + seconds * sum(loads)


def take_measured(running: Iterable[Work]) -> list[Measured]:
    """Return what was measured of jobs and has not been told yet."""
    found = []
    for work in running:
        figures = (work.busy_seconds, work.peak_gpu_mib)
        if work.job is not None and figures != work.told:
            work.told = figures
            found.append(Measured(work.job.claimed.seq, work.job.claimed.attempt, work.job.lease_id, *figures))
    return found


def _load(sample: GpuSample, grant: LeaseGrant) -> float:
    """Return what part of a GPU was busy for a lease."""
    part = 1.0
    if grant.mode is LeaseMode.SHARED and sample.gpu.memory_mib:
        part = min(1.0, (grant.memory_mib or 0) / sample.gpu.memory_mib)
    return part * (sample.utilization_percent or 0) / 100
