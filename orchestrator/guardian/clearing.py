"""GPUs that go to somebody without a job: cleared as for a runner, but nothing is started on them."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.guardian.handoff import Handoff
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.locks import DeviceLockFailed, DeviceLocks, Note
from orchestrator.guardian.messages import Cleared, GuardianEvent
from orchestrator.guardian.settings import GuardianSettings

LOOK_SECONDS: Final = 0.05


@dataclass(slots=True)
class _Clearing:
    lease_id: int
    gpus: tuple[str, ...]
    exclusive: bool
    after: tuple[str, ...]  # runners that have to be gone
    locks: DeviceLocks
    deadline: float
    look_at: float = 0.0
    locked: bool = False


class Clearances:
    """What is being cleared; ``report`` hears of each end.

    The device locks are taken, which nobody has any more then and with which what an earlier guardian left is ended; a
    GPU that is lent as a whole is judged as for a runner of its own. Then the locks are given back: it is the holder's
    part to take them, if it can.
    """

    def __init__(
        self,
        settings: GuardianSettings,
        handoff: Handoff,
        identity: Note,
        alive: Container[str],
        report: Callable[[GuardianEvent], None],
        ask_reading: Callable[[], None],
    ) -> None:
        """Start with nothing to clear; ``alive`` holds the runners that are not gone."""
        self._settings, self._handoff, self._identity, self._alive = settings, handoff, identity, alive
        self._report, self._ask_reading, self._lock_dir = report, ask_reading, settings.find_lock_dir()
        self._clearings: dict[int, _Clearing] = {}

    def add(self, wanted: Mapping[str, Any]) -> None:
        """Begin to clear GPUs for a lease, as a ``clear`` message asks for it."""
        lease_id, gpus, exclusive = int(wanted["lease"]), tuple(wanted["gpus"]), bool(wanted["exclusive"])
        self.drop(lease_id)
        mark = f"{self._identity.mark}:lease-{lease_id}"
        note = Note(mark, self._identity.guardian, self._identity.guardian_start_ticks, self._identity.boot_id)
        locks = DeviceLocks(self._lock_dir, gpus, note, exclusive=exclusive)
        deadline = boottime() + self._settings.lock_wait_seconds
        self._clearings[lease_id] = _Clearing(lease_id, gpus, exclusive, tuple(wanted["after"]), locks, deadline)

    def drop(self, lease_id: int) -> None:
        """Nobody waits for these GPUs any more."""
        clearing = self._clearings.pop(lease_id, None)
        if clearing is not None:
            clearing.locks.release()

    def drop_all(self) -> None:
        """The worker is gone, or ends."""
        for lease_id in list(self._clearings):
            self.drop(lease_id)

    def step(self, now: float) -> float | None:
        """Do what is due; returns when something will be due next, or None."""
        for clearing in list(self._clearings.values()):
            if now >= clearing.look_at:
                self._look(clearing, now)
        return min((clearing.look_at for clearing in self._clearings.values()), default=None)

    def _look(self, clearing: _Clearing, now: float) -> None:
        clearing.look_at = now + LOOK_SECONDS
        if not clearing.locked:
            self._lock(clearing, now)
        if not clearing.locked or clearing.lease_id not in self._clearings:
            return
        doubts = self._handoff.doubts(clearing.gpus) if clearing.exclusive else {}
        if not doubts:
            self._end(clearing)
        elif now >= clearing.deadline:
            self._end(clearing, "; ".join(doubts.values()), tuple(doubts))
        else:
            self._ask_reading()

    def _lock(self, clearing: _Clearing, now: float) -> None:
        left = next((runner_id for runner_id in clearing.after if runner_id in self._alive), None)
        try:
            if left is None and clearing.locks.try_acquire():
                clearing.locked, clearing.deadline = True, now + self._settings.clean_wait_seconds
            elif now >= clearing.deadline:
                self._end(clearing, clearing.locks.holder() if left is None else f"runner {left} does not end")
        except DeviceLockFailed as error:
            self._end(clearing, str(error))

    def _end(self, clearing: _Clearing, refusal: str | None = None, unclean: tuple[str, ...] = ()) -> None:
        self.drop(clearing.lease_id)
        self._report(Cleared(clearing.lease_id, refusal, unclean))
