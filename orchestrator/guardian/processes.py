"""Processes as /proc shows them: who they are, whose children, and how to signal one without hitting its successor."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One reading of a process; ``pid`` and ``start_ticks`` together name it for the whole boot."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    start_ticks: int
    alive: bool  # False: ended, waiting to be reaped


def read_process(pid: int) -> Process | None:
    """Return the process with this pid, or None."""
    try:
        data = (PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    values = data[data.rindex(b")") + 2 :].split()  # the name before it may hold spaces and brackets
    # A main thread that ended while others run is shown as a zombie too: the process is alive.
    alive = values[0] not in (b"Z", b"X") or int(values[17]) > 1
    return Process(pid, int(values[1]), int(values[2]), int(values[3]), int(values[19]), alive)


def read_processes() -> dict[int, Process]:
    """Return every process that this user may see."""
    found = (read_process(int(name)) for name in os.listdir(PROC) if name.isdecimal())
    return {process.pid: process for process in found if process is not None}


def is_alive(pid: int, start_ticks: int) -> bool:
    """The process with this pid is still the one that started then, and runs."""
    process = read_process(pid)
    return process is not None and process.start_ticks == start_ticks and process.alive


def read_variable(pid: int, name: str) -> str | None:
    """Return a variable of a process's initial environment; None if it has none or may not be read."""
    try:
        data = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    prefix = f"{name}=".encode()
    for line in data.split(b"\0"):
        if line.startswith(prefix):
            return line.removeprefix(prefix).decode("utf-8", "replace")
    return None


def has_environment(pid: int) -> bool:
    """The process shows an environment: it has one, and this user may read it."""
    try:
        return bool((PROC / str(pid) / "environ").read_bytes())
    except OSError:
        return False


def list_children(pid: int) -> list[int]:
    """Return the direct children of a single-threaded process, zombies included.

    Exact for the caller itself: only its own ``wait`` takes a child off this list.
    """
    data = (PROC / str(pid) / "task" / str(pid) / "children").read_text(encoding="ascii")
    return [int(child) for child in data.split()]


def descend(processes: dict[int, Process], root: int, *, without: frozenset[int]) -> list[Process]:
    """Return the descendants of ``root``, parents before children, leaving out these pids and what is below them."""
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        children.setdefault(process.ppid, []).append(process)
    found: list[Process] = []
    ahead = [root]
    while ahead:
        below = [child for child in children.get(ahead.pop(), ()) if child.pid not in without]
        found += below
        ahead += [child.pid for child in below]
    return found


def send_signal(process: Process, signum: int) -> bool:
    """Signal exactly this process; False if it is gone.

    Through a pidfd: between looking and signalling, the pid could have gone to another process.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = read_process(process.pid)
        if now is None or now.start_ticks != process.start_ticks:
            return False
        with contextlib.suppress(PermissionError):  # a set-user-id program; it is seen again in the next pass
            signal.pidfd_send_signal(descriptor, signum)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
