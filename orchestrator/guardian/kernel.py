"""The few Linux calls that Python has no name for, and the clocks and ids that outlive a process."""

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38

# Loaded at import: a fresh fork must not load libraries.
_libc: Final = ctypes.CDLL(None, use_errno=True)


def boottime() -> float:
    """Return CLOCK_BOOTTIME in seconds: the clock of deadlines; it counts while the host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_boot_id() -> str:
    """Return what tells this boot of the host from any other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; ends it at once if that has happened.

    Args:
        parent: The parent's pid, taken before this process was made.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def become_subreaper() -> None:
    """Have every orphan among this process's descendants reparented to it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forbid_new_privileges() -> None:
    """Have this process, and all that it starts, get no rights from a program's setuid bits or capabilities."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
