"""How busy the GPUs of running jobs are, summed up from samples."""

from collections.abc import Iterable, Mapping

from orchestrator.worker.work import Work


class BusyMeter:
    """Adds each sample, for the time since the one before, to the jobs that run."""

    def __init__(self) -> None:
        self._last: float | None = None  # monotonic

    def note(self, now: float, running: Iterable[Work], utilization: Mapping[str, int | None]) -> None:
        """Take in one sample.

        Args:
            now: Monotonic instant of the sample, in seconds.
            running: The jobs that run.
            utilization: Percent by GPU uuid; None, or no entry, where it is not known.
        """
        last, self._last = self._last, now
        for work in running:
            if work.job is None or work.begun_at is None:
                continue
            seconds = now - max(work.begun_at, now if last is None else last)
            known = [utilization.get(uuid) for uuid in work.job.line.grant.gpus]
            percent = [value for value in known if value is not None]
            if percent and seconds > 0:
                work.busy_seconds = (work.busy_seconds or 0.0) + seconds * sum(percent) / 100
