"""Which runner a process on a GPU belongs to: by pid and start, through the process tree."""

import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.domain.cluster import GpuProcess, GpuSample
from orchestrator.guardian.processes import PROC, read_process

#: The inode of the first PID namespace (PROC_PID_INIT_INO in Linux's proc_ns.h). A driver tells the pids of that one.
FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC


def sees_every_process(namespace: Path = PROC / "self/ns/pid") -> bool:
    """Tell whether pids mean the same here as to a GPU driver: not in a container with processes of its own."""
    try:
        return namespace.stat().st_ino == FIRST_PID_NAMESPACE
    except OSError:
        return False


def identify(samples: Sequence[GpuSample], *, pids_are_ours: bool) -> tuple[GpuSample, ...]:
    """Return a fresh reading with the start and the account of every process; without processes if pids are not ours.

    Made at once after the reading, so that a pid which is given away later is not mistaken for its earlier owner.
    """
    if not pids_are_ours:
        return tuple(replace(sample, processes=(), tells_processes=False) for sample in samples)
    return tuple(_with_processes(sample, tuple(map(_identify, sample.processes))) for sample in samples)


def attribute(samples: Sequence[GpuSample], runner_of: Callable[[int, int], str | None]) -> tuple[GpuSample, ...]:
    """Return a reading with the runner of every process that is still there.

    Args:
        samples: What ``identify`` returned.
        runner_of: Returns the runner that a process belongs to, by pid and start; None for none.
    """
    found = []
    for sample in samples:
        there = [process for process in sample.processes if _is_there(process)]
        found.append(_with_processes(sample, tuple(_named(process, runner_of) for process in there)))
    return tuple(found)


def _named(process: GpuProcess, runner_of: Callable[[int, int], str | None]) -> GpuProcess:
    if process.start_ticks is None:
        return process
    return replace(process, runner=runner_of(process.pid, process.start_ticks))


def _with_processes(sample: GpuSample, processes: tuple[GpuProcess, ...]) -> GpuSample:
    return sample if processes == sample.processes else replace(sample, processes=processes)


def _identify(process: GpuProcess) -> GpuProcess:
    found = read_process(process.pid)
    return process if found is None else replace(process, start_ticks=found.start_ticks, user=_account(process.pid))


def _account(pid: int) -> str | None:
    try:
        uid = (PROC / str(pid)).stat().st_uid
    except OSError:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _is_there(process: GpuProcess) -> bool:
    """The process has not ended since it was read; what belongs to others may be hidden, but not that it exists."""
    if process.start_ticks is not None:
        now = read_process(process.pid)
        return now is not None and now.start_ticks == process.start_ticks and now.alive
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return read_process(process.pid) is None  # started since, under a pid that was given away
