"""Run a module as a program with fail points armed: ``python -m tests.chaos.armed PLAN MODULE ARGUMENTS…``.

PLAN is a JSON list of faults, each ``{"point", "do", "skip", "mark"}``: at the visit after ``skip`` others the process
does what ``do`` says. Whoever creates the file ``mark`` first is the one that does it, so that a fault happens once, also
when its process is started again. ``{"point": "clock", "do": "shift", "seconds", "mark"}`` has the wall clock jump.
"""

import json
import os
import runpy
import signal
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

from orchestrator import failpoints
from orchestrator.clock import SystemClock
from orchestrator.errors import StoreUnavailable

POLL_SECONDS = 0.05


class Plan:
    """Which faults this process is to suffer."""

    def __init__(self, file: Path) -> None:
        self._faults = json.loads(file.read_text())
        self._lock = threading.Lock()
        for fault in self._faults:
            assert fault["point"] in {"clock", *failpoints.POINTS}, fault
            if fault["do"] == "shift":
                shift_clock(float(fault["seconds"]), Path(fault["mark"]))

    def reach(self, point: str) -> None:
        """Suffer what is planned for this point."""
        for fault in self._faults:
            if fault["point"] == point and self._is_mine(fault):
                suffer(fault["do"], Path(fault["mark"]))

    def _is_mine(self, fault: dict[str, int | str]) -> bool:
        with self._lock:
            fault["skip"] = int(fault["skip"]) - 1
            if fault["skip"] >= 0:
                return False
            try:
                os.close(os.open(str(fault["mark"]), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
            return True


def suffer(what: str, mark: Path) -> None:
    """Do it: ``kill`` or ``stop`` this process, ``hold`` until the file ``MARK.go`` is there, ``fail`` the store."""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "hold":
        while not mark.with_suffix(".go").exists():
            time.sleep(POLL_SECONDS)
    elif what == "fail":
        raise StoreUnavailable("the answer was lost")
    else:
        raise AssertionError(what)


def shift_clock(seconds: float, mark: Path) -> None:
    """Have this process's wall clock jump when the file ``mark`` is there; what counts elapsed time goes on evenly."""
    real_time, real_now = time.time, SystemClock.now
    jumped: list[bool] = []

    def shift() -> float:
        if not jumped and mark.exists():
            jumped.append(True)
        return seconds if jumped else 0.0

    def now(clock: SystemClock) -> datetime:
        return real_now(clock) + timedelta(seconds=shift())

    time.time = lambda: real_time() + shift()
    SystemClock.now = now  # type: ignore[method-assign]


if __name__ == "__main__":
    failpoints.arm(Plan(Path(sys.argv[1])).reach)
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
