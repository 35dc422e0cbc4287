"""A guardian for tests, whose events and whose runners' output are collected, and a worker that may be killed."""

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.guardian.client import Guardian, GuardianSettings, RunnerPipes
from orchestrator.guardian.messages import Exited, GuardianEvent, RunnerSpec, Spawned, SpawnFailed
from orchestrator.guardian.processes import read_process
from tests.support.waiting import wait_for

T = TypeVar("T")
#: Holds the entries that runners import and the worker that is started as a program.
PROGRAMS = Path(__file__).parents[1] / "integration" / "guardian"
DEADLINE = 15.0
SPARSE = {"PATH": os.environ["PATH"]}


#: Ignores TERM; has a child, and a daemon that left session and parent.
STUBBORN_TREE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def report(): os.write(1, b"%d\\n" % os.getpid())  # one write: lines of several processes must not mix
def wait(): time.sleep(600)
report()
if os.fork() == 0: report(); wait()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: report(); wait()
    os._exit(0)
wait()
"""
#: And another daemon, that threw its environment away as well.
STUBBORN = (
    STUBBORN_TREE.removesuffix("wait()\n")
    + """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        again = "import os, signal, time; signal.signal(15, signal.SIG_IGN)"
        again += "; os.write(1, b'%d\\\\n' % os.getpid()); time.sleep(600)"
        os.execve(sys.executable, [sys.executable, "-c", again], {})
    time.sleep(1)
    os._exit(0)
wait()
"""
)


def wait(condition: Callable[[], T | None], what: str | Callable[[], str], seconds: float = DEADLINE) -> T:
    """Return the condition's first true answer, within the deadline that nearly all of these tests keep."""
    answer = wait_for(condition, within_seconds=seconds, describe=what)
    assert answer is not None
    return answer


def lives(pid: int) -> bool:
    """The process runs (a zombie does not)."""
    process = read_process(pid)
    return process is not None and process.alive


def make_spec(runner_id: str = "r1", **values: Any) -> RunnerSpec:
    """Return a spec with the values that a test is not about."""
    defaults: dict[str, Any] = {
        "runner_id": runner_id,
        "argv": None,
        "entry": None,
        "environment": SPARSE,
        "cwd": "/",
        "gpus": (),
        "exclusive": True,
        "token": 1,
        "nice": None,
        "rlimits": {},
    }
    return RunnerSpec(**(defaults | values))


def python(source: str, *arguments: str) -> tuple[str, ...]:
    """Return the argv of a Python program given as text."""
    return (sys.executable, "-u", "-c", source, *arguments)


class Host:
    """One guardian, everything that it said, and what its runners printed."""

    def __init__(self, settings: GuardianSettings) -> None:
        self.settings = settings
        self.guardian = Guardian.start(settings)
        self.events: list[GuardianEvent] = []
        self.pipes: dict[str, RunnerPipes] = {}
        self.printed: dict[str, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.guardian, selectors.EVENT_READ, None)

    def spawn(self, runner_id: str = "r1", **values: Any) -> RunnerPipes:
        """Ask for a runner."""
        pipes = self.guardian.spawn(make_spec(runner_id, **values))
        self.pipes[runner_id], self.printed[runner_id] = pipes, b""
        self._selector.register(pipes.output, selectors.EVENT_READ, runner_id)
        return pipes

    def start(self, runner_id: str = "r1", **values: Any) -> int:
        """Start a runner and return its pid."""
        self.spawn(runner_id, **values)
        return self.expect(Spawned, runner_id).pid

    def run(self, runner_id: str = "r1", **values: Any) -> Exited:
        """Start a runner and return its end; its output is complete then."""
        self.spawn(runner_id, **values)
        return self.expect_end(runner_id)

    def expect(self, kind: type[T], runner_id: str | None = None, seconds: float = DEADLINE) -> T:
        """Return the first event of this kind, about this runner, from now on or not taken before."""

        def find() -> T | None:
            self.turn()
            for event in self.events:
                if isinstance(event, kind) and (runner_id is None or getattr(event, "runner_id", None) == runner_id):
                    self.events.remove(event)
                    return event
                if isinstance(event, SpawnFailed) and kind is not SpawnFailed and event.runner_id == runner_id:
                    raise AssertionError(f"{runner_id} did not start: {event.reason}")
            return None

        return wait(find, lambda: f"{kind.__name__} of {runner_id}; seen: {self.events}", seconds)

    def expect_end(self, runner_id: str = "r1", seconds: float = DEADLINE) -> Exited:
        """Return how a runner ended, after reading all that it printed."""
        ended = self.expect(Exited, runner_id, seconds)

        def is_read() -> bool:
            self.turn()
            return self.pipes[runner_id].output not in self._selector.get_map()

        wait(is_read, "end of output")
        return ended

    def receive(self, runner_id: str = "r1") -> Any:
        """Return the next JSON packet on a runner's control socket."""
        control = self.pipes[runner_id].control

        def read() -> bytes | None:
            self.turn()
            has_ended = any(isinstance(event, Exited) for event in self.events)
            try:
                return control.recv(1 << 20)
            except BlockingIOError:
                assert not has_ended, self.printed[runner_id].decode()
                return None

        return json.loads(wait(read, f"a packet from {runner_id}"))

    def wait_printed(self, wanted: bytes, runner_id: str = "r1") -> bytes:
        """Return the output so far once it contains this."""

        def find() -> bytes | None:
            self.turn()
            return self.printed[runner_id] if wanted in self.printed[runner_id] else None

        return wait(find, f"{wanted!r} in the output")

    def turn(self) -> None:
        """Take in what is there, without waiting."""
        for key, _ready in self._selector.select(0):
            if key.data is None:
                self.events += self.guardian.read_events()
                continue
            data = os.read(key.fd, 1 << 16)
            self.printed[key.data] += data
            if not data:
                self._selector.unregister(key.fd)

    def children(self) -> list[int]:
        """Return the guardian's helpers: the fork server and the sampler."""
        found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdecimal())
        return sorted(process.pid for process in found if process is not None and process.ppid == self.guardian.pid)

    def helper(self, module: str) -> int:
        """Return the pid of a helper once it runs."""

        def find() -> int | None:
            for pid in self.children():
                if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
            return None

        return wait(find, module)

    def journal(self) -> list[dict[str, Any]]:
        """Return the journal's records."""
        return [json.loads(line) for line in self.settings.find_journal().read_text().splitlines()]

    def close(self) -> None:
        """End the guardian and give back every descriptor."""
        self._selector.close()
        try:
            self.guardian.close(timeout_seconds=DEADLINE)
        finally:
            for pipes in self.pipes.values():
                pipes.control.close()
                pipes.control_far.close()
                os.close(pipes.output)


class WorkerProcess:
    """A worker in a process of its own, which a test may stop and kill."""

    def __init__(self, settings: GuardianSettings, spec: RunnerSpec) -> None:
        arguments = [json.dumps(settings.to_document()), json.dumps(spec.to_document())]
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "guardian_worker.py"), *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended with {self.process.wait(DEADLINE)}"
        told = json.loads(line)
        self.pid, self.guardian, self.runner = self.process.pid, int(told["guardian"]), int(told["runner"])

    def close(self) -> None:
        """Kill the worker if it still runs."""
        self.process.kill()
        self.process.wait(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        wait(lambda: not lives(self.guardian), "the end of the worker's guardian")


StartHost = Callable[..., Host]
StartWorker = Callable[..., WorkerProcess]
