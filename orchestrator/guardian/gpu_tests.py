"""The self-tests of GPUs that run, each a process with a bound in time, as the guardian sees them."""

import json
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from orchestrator.domain.cluster import GpuSample
from orchestrator.gpus.self_test import Verdict
from orchestrator.guardian.messages import GpuTested
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.guardian.spawning import start_helper

#: Names the processes of self-tests in readings, as a runner's are named after it.
TESTER: Final = "self-test"
LONGEST: Final = 1 << 16  # what a pipe holds


@dataclass(slots=True)
class _Test:
    gpu: str
    pipe: int  # what it prints
    deadline: float
    is_late: bool = False


class GpuTests:
    """Starts self-tests and says how they ended; a GPU is tested once at a time."""

    def __init__(self, settings: GuardianSettings) -> None:
        self._simulated = [] if settings.simulated_gpus is None else [str(settings.simulated_gpus)]
        self._seconds = settings.self_test_seconds
        self._asked: list[str] = []
        self._running: dict[int, _Test] = {}  # by pid

    @property
    def pids(self) -> set[int]:
        """The processes of self-tests; not for the guardian to end as strays."""
        return set(self._running)

    @property
    def due(self) -> float | None:
        """When something is to be done, by the boot clock."""
        if self._asked:
            return 0.0
        return min((test.deadline for test in self._running.values() if not test.is_late), default=None)

    def ask(self, gpu: str) -> None:
        """Have a GPU tested."""
        if gpu not in self._asked and not any(test.gpu == gpu and not test.is_late for test in self._running.values()):
            self._asked.append(gpu)

    def step(self, now: float) -> Iterable[GpuTested]:
        """Start what was asked for; return what can be told already: what cannot be started, or takes too long."""
        told = []
        for gpu in self._asked:
            if any(test.gpu == gpu for test in self._running.values()):
                told.append(GpuTested(gpu, Verdict.FAILED, "an earlier one hangs in the driver and cannot be ended"))
                continue
            try:
                self._start(gpu, now)
            except OSError as error:  # no memory, processes or descriptors just now
                told.append(GpuTested(gpu, Verdict.UNTESTED, f"it cannot be started: {error.strerror}"))
        self._asked.clear()
        for pid, test in self._running.items():
            if now >= test.deadline and not test.is_late:
                test.is_late = True
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is its own
                told.append(GpuTested(test.gpu, Verdict.FAILED, f"it took more than {self._seconds:g} s"))
        return told

    def on_ended(self, pid: int, status: int) -> GpuTested | None:
        """A test's process is gone; None if what it found is told already."""
        test = self._running.pop(pid)
        try:
            said = os.read(test.pipe, LONGEST)
        except BlockingIOError:
            said = b""
        os.close(test.pipe)
        if test.is_late:
            return None
        try:
            found = json.loads(said)
            return GpuTested(test.gpu, Verdict(found["verdict"]), found["reason"])
        except ValueError:  # it printed nothing, or not all of it
            code = os.waitstatus_to_exitcode(status)
            verdict = Verdict.UNTESTED if code == -signal.SIGKILL else Verdict.FAILED  # somebody else ended it
            return GpuTested(test.gpu, verdict, f"it ended with {code} before it had a result")

    def claim(self, samples: Sequence[GpuSample]) -> tuple[GpuSample, ...]:
        """Return a reading in which the processes of self-tests are nobody else's."""
        if not self._running:
            return tuple(samples)
        return tuple(
            replace(
                sample,
                processes=tuple(
                    replace(process, runner=TESTER) if process.pid in self._running else process
                    for process in sample.processes
                ),
            )
            for sample in samples
        )

    def _start(self, gpu: str, now: float) -> None:
        ours, theirs = os.pipe()
        try:
            pid = start_helper(
                "orchestrator.guardian.self_test", [str(os.getpid()), gpu, *self._simulated], {1: theirs}
            )
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(ours, False)  # should somebody else have kept its other end
        self._running[pid] = _Test(gpu, ours, now + self._seconds)
