"""Whether a GPU is clean for its next exclusive user, by a reading made since the one before was gone."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.domain.cluster import GpuSample


@dataclass(slots=True)
class Handoff:
    """What is known of each GPU since something last ran there.

    A GPU that nothing ran on since its last clean reading is handed over without delay. One that the driver never told
    of is not judged.
    """

    clean_memory_mib: int  # a GPU with more than that in use is not clean
    _used_at: dict[str, float] = field(default_factory=dict)  # when something last ended there
    _read_at: float = 0.0
    _samples: dict[str, GpuSample] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)

    def note_use(self, gpus: Iterable[str], now: float) -> None:
        """Something of a runner was alive on these GPUs until now, in seconds of the boot clock."""
        for gpu in gpus:
            self._used_at[gpu] = now

    def note_reading(self, samples: Iterable[GpuSample], read_at: float) -> None:
        """Take in a newer reading of every GPU; it began at this instant of the boot clock."""
        if read_at > self._read_at:
            self._samples, self._read_at = {sample.gpu.uuid: sample for sample in samples}, read_at
            self._known.update(self._samples)

    def samples(self) -> Iterable[GpuSample]:
        """Return the latest reading."""
        return self._samples.values()

    def doubts(self, gpus: Iterable[str]) -> dict[str, str]:
        """Return which of these GPUs cannot be handed over now, and why."""
        doubts = {gpu: self.doubt(gpu) for gpu in gpus}
        return {gpu: doubt for gpu, doubt in doubts.items() if doubt is not None}

    def doubt(self, gpu: str) -> str | None:
        """Return why a GPU cannot be handed over now; None if it can."""
        if gpu not in self._known:
            return None
        sample = self._samples.get(gpu)
        if sample is None:
            return f"{gpu} is not told of by its driver any more"
        if self._read_at <= self._used_at.get(gpu, 0.0):
            return f"{gpu} has not been read since it was last used"
        if sample.used_mib > self.clean_memory_mib:
            return f"{gpu} has {sample.used_mib} MiB in use that no lease explains{_by_whom(sample)}"
        return None


def _by_whom(sample: GpuSample) -> str:
    users = [f"pid {process.pid}: {process.used_mib} MiB" for process in sample.processes]
    return f" ({', '.join(users)})" if users else ", by no process that can be seen"
