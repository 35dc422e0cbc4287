"""Cards that hung the process which read them: the others are read without them, and each is tried again by itself."""

import logging
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.domain.cluster import GpuHealth, GpuSample
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.guardian.spawning import start_helper

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Card:
    since: float  # by the boot clock, as all instants here
    pause: float  # before it is tried again; doubles
    try_at: float


@dataclass(slots=True)
class _Try:
    index: int
    deadline: float
    is_late: bool = False


class HungCards:
    """Knows which cards hang, what they were before, and when they answer again."""

    def __init__(self, settings: GuardianSettings) -> None:
        self._settings = settings
        self._cards: dict[int, _Card] = {}
        self._tries: dict[int, _Try] = {}  # by pid
        self._known: dict[int, tuple[GpuSample, ...]] = {}  # by index: the last reading; several of a card in MIG mode

    @property
    def indexes(self) -> list[int]:
        """The cards that are left out."""
        return sorted(self._cards)

    @property
    def pids(self) -> set[int]:
        """The processes that try cards."""
        return set(self._tries)

    @property
    def due(self) -> float | None:
        """When something is to be done."""
        tried = {one.index for one in self._tries.values()}
        dues = [card.try_at for index, card in self._cards.items() if index not in tried]
        return min([*dues, *(one.deadline for one in self._tries.values() if not one.is_late)], default=None)

    def add(self, index: int) -> None:
        """A card has hung its reader."""
        now = boottime()
        pause = self._settings.hung_retry_seconds
        self._cards.setdefault(index, _Card(now, pause, now + pause))

    def complete(self, samples: Iterable[GpuSample]) -> tuple[GpuSample, ...]:
        """Return a reading of the others with the cards that hang: in doubt for a while, and then not told of."""
        found = tuple(samples)
        now = boottime()
        indexes = {sample.gpu.index for sample in found}
        self._known |= {index: tuple(s for s in found if s.gpu.index == index) for index in indexes}
        doubtful = [
            GpuSample(sample.gpu, 0, GpuHealth.SUSPECT, (), None, None, None, xid_count=sample.xid_count)
            for index, card in self._cards.items()
            if now < card.since + self._settings.hung_lost_seconds
            for sample in self._known.get(index, ())
        ]
        return (*found, *doubtful)

    def step(self, now: float) -> None:
        """Try the cards again whose time has come, and end the tries that hang too."""
        tried = {one.index for one in self._tries.values()}
        for index, card in self._cards.items():
            if index not in tried and now >= card.try_at:
                self._try(index, card, now)
        for pid, one in self._tries.items():
            if now >= one.deadline and not one.is_late:
                one.is_late = True
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is its own

    def on_ended(self, pid: int, status: int) -> bool:
        """A try is over; tell whether its card answers again, were it with an error."""
        one = self._tries.pop(pid)
        if one.is_late or os.waitstatus_to_exitcode(status) != 0:
            return False
        del self._cards[one.index]
        logger.warning("GPU %d does not hang its driver any more", one.index)
        return True

    def _try(self, index: int, card: _Card, now: float) -> None:
        card.pause = min(2 * card.pause, self._settings.hung_most_retry_seconds)
        card.try_at = now + card.pause
        simulated = [] if self._settings.simulated_gpus is None else [str(self._settings.simulated_gpus)]
        arguments = [str(os.getpid()), "0", f"only:{index}", *simulated]
        try:
            null = os.open(os.devnull, os.O_RDWR)
            try:
                pid = start_helper("orchestrator.guardian.sampler", arguments, {0: null, 1: null})
            finally:
                os.close(null)
        except OSError as error:
            logger.error("GPU %d cannot be tried again now: %s", index, error)
        else:
            self._tries[pid] = _Try(index, now + self._settings.sampler_deadline_seconds)
