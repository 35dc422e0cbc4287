"""Device locks: on one host, at most one exclusive user of a GPU, whichever worker it belongs to.

A lock is a ``flock`` on a file that is never removed. The guardian holds it until a runner's last process is gone. The
kernel frees it when a guardian is killed, and then something of the runner may still be alive; so the holder leaves a
note in the file, and whoever takes the lock next ends what an unfinished note names before it starts anything.
"""

import fcntl
import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.guardian.processes import is_alive, send_signal
from orchestrator.guardian.tree import find_remains

logger = logging.getLogger(__name__)


class DeviceLockFailed(Exception):
    """The file of a lock cannot be used; caught where a runner is started."""


@dataclass(frozen=True, slots=True)
class Note:
    """Who uses a GPU: a runner's mark, and its guardian."""

    mark: str
    guardian: int
    guardian_start_ticks: int
    boot_id: str
    released: bool = False


class DeviceLock:
    """The lock of one GPU for one runner."""

    def __init__(self, directory: Path, gpu: str, note: Note, *, exclusive: bool) -> None:
        self.gpu, self._note, self._exclusive = gpu, note, exclusive
        # Older drivers name MIG instances with slashes.
        self._path = directory / f"gpu-{re.sub(r'[^A-Za-z0-9._-]', '_', gpu)}.lock"
        self._file = -1
        self._locked = self._noted = False

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it and nothing of an earlier holder is alive; ends the latter. Never waits.

        Raises:
            OSError: If the lock's file cannot be used.
        """
        if self._noted:
            return True
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
        if not self._locked and not self._flock(fcntl.LOCK_EX if self._exclusive else fcntl.LOCK_SH):
            return False
        self._locked = True
        remains = find_remains({note.mark for note in self._unfinished(lambda note: not _guardian_lives(note))})
        for process in remains:
            send_signal(process, signal.SIGKILL)
        if remains:
            return False  # the lock is held meanwhile; the next try looks whether they are gone
        if self._exclusive:
            os.ftruncate(self._file, 0)
        self._write(self._note)
        self._noted = True
        return True

    def holder(self) -> str:
        """Say who holds the lock, as far as the file tells."""
        others = self._unfinished(_guardian_lives)
        if not others:
            return f"{self.gpu} is locked"
        return f"{self.gpu} is locked by pid {others[-1].guardian} for runner {others[-1].mark.partition(':')[2]}"

    def release(self) -> None:
        """Give the lock back, whether or not it was taken."""
        if self._file < 0:
            return
        if self._noted:
            try:
                self._settle()
            except OSError as error:  # the next holder looks for what the note names, in vain
                logger.error("device lock %s: %s", self._path, error)
        os.close(self._file)
        self._file, self._locked, self._noted = -1, False, False

    def _settle(self) -> None:
        self._write(Note(**{**asdict(self._note), "released": True}))
        # Alone, and nothing unfinished: start the file afresh, or shared use would make it grow for ever.
        if self._flock(fcntl.LOCK_EX) and not self._unfinished(lambda _note: True):
            os.ftruncate(self._file, 0)

    def _flock(self, operation: int) -> bool:
        try:
            fcntl.flock(self._file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _write(self, note: Note) -> None:
        os.write(self._file, (json.dumps(asdict(note), separators=(",", ":")) + "\n").encode())

    def _unfinished(self, wanted: Callable[[Note], bool]) -> list[Note]:
        unfinished: dict[str, Note] = {}
        for line in os.pread(self._file, os.fstat(self._file).st_size, 0).splitlines():
            try:
                note = Note(**json.loads(line))
            except (ValueError, TypeError):
                continue  # cut off when its writer was killed: it had taken nothing yet
            if note.boot_id != self._note.boot_id or note.released:
                unfinished.pop(note.mark, None)
            elif note.mark != self._note.mark:
                unfinished[note.mark] = note
        return [note for note in unfinished.values() if wanted(note)]


class DeviceLocks:
    """The locks of several GPUs for one user; taken in one order, so that two who want the same never wait for ever."""

    def __init__(self, directory: Path, gpus: Iterable[str], note: Note, *, exclusive: bool) -> None:
        self._directory = directory
        self._locks = [DeviceLock(directory, gpu, note, exclusive=exclusive) for gpu in sorted(set(gpus))]
        self._awaited: DeviceLock | None = None

    def try_acquire(self) -> bool:
        """Take what can be had of them and tell whether it is all; never waits.

        Raises:
            DeviceLockFailed: If a lock's file cannot be used.
        """
        for lock in self._locks:
            try:
                if lock.try_acquire():
                    continue
            except OSError as error:
                place = error.filename or self._directory
                raise DeviceLockFailed(f"device lock of {lock.gpu}: {error.strerror}: {place}") from error
            self._awaited = lock
            return False
        return True

    def holder(self) -> str:
        """Say who holds the lock that could not be had."""
        return "" if self._awaited is None else self._awaited.holder()

    def release(self) -> None:
        """Give them back, whether or not they were taken."""
        for lock in self._locks:
            lock.release()


def _guardian_lives(note: Note) -> bool:
    return is_alive(note.guardian, note.guardian_start_ticks)
