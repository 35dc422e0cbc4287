"""Runners of an earlier guardian whose processes outlive KILL: their GPUs stay locked until they are gone."""

import logging
import signal
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from orchestrator.guardian.journal import Journal, Record
from orchestrator.guardian.locks import DeviceLock, Note
from orchestrator.guardian.messages import GuardianEvent, Stuck
from orchestrator.guardian.processes import Process, send_signal
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.guardian.tree import find_remains, find_session_remains

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5


@dataclass(slots=True)
class _Leftover:
    record: Record
    locks: list[DeviceLock]
    is_told: bool = False


class Leftovers:
    """What the journal says of them; ``report`` hears of each, and of its end."""

    def __init__(self, settings: GuardianSettings, journal: Journal, identity: Note, records: Iterable[Record]) -> None:
        """Take the locks; another guardian that has one finds the processes too, and starts nothing."""
        self._journal, directory = journal, settings.find_lock_dir()
        self._look_at = 0.0
        self._leftovers: list[_Leftover] = []
        for record in records:
            journal.keep(record)
            note, gpus = replace(identity, mark=f"{identity.mark}:left-{record['mark']}"), sorted(set(record["gpus"]))
            locks = [DeviceLock(directory, gpu, note, exclusive=record["exclusive"]) for gpu in gpus]
            self._leftovers.append(_Leftover(record, locks))
            _hold(locks)

    def __len__(self) -> int:
        return len(self._leftovers)

    def step(self, now: float, report: Callable[[GuardianEvent], None]) -> float | None:
        """Tell of those that were not told, kill on, and let go of what is gone; returns when to look again."""
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            for leftover in list(self._leftovers):
                self._look(leftover, report)
        return self._look_at if self._leftovers else None

    def _look(self, leftover: _Leftover, report: Callable[[GuardianEvent], None]) -> None:
        record, remains = leftover.record, kill_remains([leftover.record])
        told = Stuck(f"left-{record['mark']}".replace(":", "-"), tuple(record["gpus"]), ())
        if remains and not leftover.is_told:
            leftover.is_told = True
            report(replace(told, pids=tuple(process.pid for process in remains)))
        _hold(leftover.locks)
        if remains:
            return
        self._leftovers.remove(leftover)
        note_cleared(self._journal, record)
        for lock in leftover.locks:
            lock.release()
        if leftover.is_told:
            report(replace(told, is_over=True))


def kill_remains(records: Collection[Record]) -> list[Process]:
    """Return what is alive of the runners that these records tell of, and kill it once more."""
    found = find_remains({record["mark"] for record in records})
    for record in records:
        if "pid" in record:
            found += find_session_remains(record["pid"], record["start_ticks"], {record["mark"]})
    remains = {process.pid: process for process in found}
    for process in remains.values():
        send_signal(process, signal.SIGKILL)
    return list(remains.values())


def note_cleared(journal: Journal, record: Record) -> None:
    """Write that nothing is left of an earlier guardian's runner."""
    journal.append("exit", mark=record["mark"], runner=record["runner"], gpus=record["gpus"], cause="cleared")


def _hold(locks: Iterable[DeviceLock]) -> None:
    for lock in locks:
        try:
            lock.try_acquire()
        except OSError as error:
            logger.error("device lock of %s: %s", lock.gpu, error)
