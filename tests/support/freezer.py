"""Processes that KILL does not end: frozen by the first version of control groups, they die when they are thawed.

As a process does that waits for a driver in the kernel, which no test can make.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import pytest

from tests.support.waiting import wait_for

ROOT = Path("/sys/fs/cgroup/freezer")


class Freezer:
    """A control group whose processes stand still until ``thaw``; made with the first of them."""

    def __init__(self) -> None:
        self._group = ROOT / f"orchestrator-test-{os.getpid()}"

    def __enter__(self) -> Self:
        """Skip the test where there is no freezer."""
        if not os.access(ROOT, os.W_OK) or not (ROOT / "cgroup.procs").exists():
            pytest.skip(f"no freezer of control groups v1 at {ROOT} that may be used: nothing outlives KILL here")
        self._group.mkdir()
        return self

    def freeze(self, pids: Iterable[int]) -> None:
        """Have these processes stand still."""
        for pid in pids:
            (self._group / "cgroup.procs").write_text(str(pid))
        self._turn("FROZEN")

    def thaw(self) -> None:
        """Let them go on, and die of the KILL that they were sent."""
        self._turn("THAWED")

    def __exit__(self, *_: object) -> None:
        self.thaw()
        wait_for(self._is_removed, within_seconds=20, describe="the group to be empty")

    def _turn(self, state: str) -> None:
        file = self._group / "freezer.state"
        file.write_text(state)
        wait_for(lambda: file.read_text().strip() == state, within_seconds=20, describe=state)

    def _is_removed(self) -> bool:
        try:
            self._group.rmdir()
        except OSError:
            return False
        return True
