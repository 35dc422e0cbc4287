"""The worker's side of its guardian: starts it, asks it, hears it; nothing here blocks but ``start`` and ``close``."""

import contextlib
import fcntl
import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.errors import RunnerLost
from orchestrator.guardian.channel import Channel, Document
from orchestrator.guardian.messages import GuardianEvent, RunnerSpec, event_from_document
from orchestrator.guardian.settings import GuardianSettings

__all__ = ["Guardian", "GuardianSettings", "RunnerPipes"]

logger = logging.getLogger(__name__)

#: Room in an output pipe: a job that prints a lot need not wait for the worker's event loop.
PIPE_BYTES: Final = 1 << 20
EXIT_SECONDS: Final = 5.0
MILLISECONDS: Final = 1000


@dataclass(frozen=True, slots=True)
class RunnerPipes:
    """The worker's ends; who gets them closes them.

    ``control_far`` is the runner's own end, kept so that messages which it has not read can be taken back. Blocking or
    not is a property that both processes share, so read it with ``MSG_DONTWAIT`` and never change it.
    """

    control: socket.socket  # sequenced packets, non-blocking
    control_far: socket.socket
    output: int  # read end of stdout and stderr, non-blocking; ends with the last process that holds it


class Guardian:
    """A running guardian; not for use by several threads at once."""

    def __init__(self, channel: Channel, process: subprocess.Popen[bytes]) -> None:
        """Use ``start``."""
        self._channel, self._process = channel, process
        self._events: list[GuardianEvent] = []
        self._is_closed = False
        self.pid = process.pid

    @classmethod
    def start(cls, settings: GuardianSettings) -> "Guardian":
        """Start a guardian and wait until it has made sure that nothing of its predecessor is alive.

        Call it before the process has threads.

        Raises:
            RunnerLost: If it refuses, saying why, ends, or is not ready in time.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.guardian", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # out of reach of the terminal's signals
            )
        guardian = cls(Channel(ours), process)
        guardian._channel.send({"op": "settings", "settings": settings.to_document()})
        try:
            guardian._await("ready", settings.start_deadline_seconds)
        except RunnerLost:
            guardian._abandon()
            raise
        return guardian

    def fileno(self) -> int:
        """Return the descriptor that is readable when ``read_events`` has something to return."""
        return self._channel.fileno()

    def spawn(self, spec: RunnerSpec) -> RunnerPipes:
        """Ask for a runner; ``Spawned`` or ``SpawnFailed`` will tell what became of it.

        Raises:
            OSError: If this process has no descriptors left.
        """
        with contextlib.ExitStack() as undo:
            control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(far.close)
            undo.callback(control.close)
            output, write_end = os.pipe()
            undo.callback(os.close, output)
            undo.callback(os.close, write_end)
            handed = os.dup(far.fileno())
            undo.pop_all()
        control.setblocking(False)
        far.setblocking(True)  # whatever the default: Celery sets one while a worker stops, and the runner shares it
        os.set_blocking(output, False)
        with contextlib.suppress(OSError):  # above the user's limit: the default size works too
            fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._channel.send({"op": "spawn", "spec": spec.to_document()}, [handed, write_end])
        return RunnerPipes(control, far, output)

    def set_deadlines(self, deadlines: Mapping[str, float]) -> None:
        """Have runners killed at these CLOCK_BOOTTIME instants unless they are set anew; ``math.inf`` for never."""
        self._channel.send({"op": "deadlines", "deadlines": dict(deadlines)})

    def signal(self, runner_id: str, signum: int, *, leader_only: bool = False) -> None:
        """Signal a runner's process group, or only its first process; nothing if it has not begun or has ended."""
        self._channel.send({"op": "signal", "runner": runner_id, "signal": int(signum), "leader_only": leader_only})

    def kill(self, runner_id: str, grace_seconds: float) -> None:
        """End a runner and all that it started: TERM, KILL after the grace; at once if that is 0."""
        self._channel.send({"op": "kill", "runner": runner_id, "grace_seconds": grace_seconds})

    def clear(self, lease_id: int, gpus: Sequence[str], *, exclusive: bool, after: Sequence[str]) -> None:
        """Make sure that nothing is left on GPUs that go to a lease without a job; ``Cleared`` will tell.

        ``after``: runners that have to be gone; they are being ended.
        """
        wanted = {"lease": lease_id, "gpus": list(gpus), "exclusive": exclusive, "after": list(after)}
        self._channel.send({"op": "clear", **wanted})

    def drop_clearance(self, lease_id: int) -> None:
        """Nobody waits for the GPUs of this lease any more."""
        self._channel.send({"op": "drop_clearance", "lease": lease_id})

    def note_use(self, gpus: Sequence[str]) -> None:
        """Who had these GPUs without a job has given them back: the next user's are read anew."""
        self._channel.send({"op": "used", "gpus": list(gpus)})

    def self_test(self, gpu: str) -> None:
        """Ask for a self-test of a GPU; ``GpuTested`` will tell what came of it."""
        self._channel.send({"op": "self_test", "gpu": gpu})

    def read_events(self) -> list[GuardianEvent]:
        """Return what has happened since the last call.

        Raises:
            RunnerLost: If the guardian is gone, and every runner with it; what it said before is returned first.
        """
        self._receive()
        events, self._events = self._events, []
        if not events and self._channel.closed:
            raise RunnerLost(f"the guardian with pid {self.pid} is gone{self._describe_end()}")
        return events

    def close(self, timeout_seconds: float) -> None:
        """Have every runner killed at once and the guardian end; returns when nothing is left that can be ended.

        For what outlives KILL the guardian goes on by itself, and keeps the locks of its GPUs.

        Raises:
            RunnerLost: If it takes longer; the guardian goes on then as well.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._channel.send({"op": "close"})
        try:
            if self._await("closed", timeout_seconds)["stays"]:
                logger.error("processes of runners cannot be ended; guardian %d stays until they are gone", self.pid)
                return
            self._process.wait(EXIT_SECONDS)
        except RunnerLost:
            if self._process.poll() is None:
                raise
        except subprocess.TimeoutExpired as error:
            raise RunnerLost(f"the guardian with pid {self.pid} does not end") from error
        finally:
            self._channel.close()

    def _await(self, op: str, timeout_seconds: float) -> Document:
        deadline = time.monotonic() + timeout_seconds
        while True:
            for message in self._receive():
                if message["op"] == op:
                    return message
                if message["op"] == "refused":
                    raise RunnerLost(f"the guardian refused: {message['reason']}")
            if self._channel.closed:
                raise RunnerLost(f"the guardian with pid {self.pid} ended{self._describe_end()}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise RunnerLost(f"the guardian with pid {self.pid} did not answer in {timeout_seconds:g} s")
            poll = select.poll()
            poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.pending else 0))
            poll.poll(left * MILLISECONDS)

    def _receive(self) -> list[Document]:
        """Take in what has come: events are kept, anything else is returned."""
        if self._channel.closed:
            return []
        self._channel.flush()
        answers = []
        for message, _descriptors in self._channel.receive():
            if message["op"] in ("ready", "closed", "refused"):
                answers.append(message)
            else:
                self._events.append(event_from_document(message))
        return answers

    def _describe_end(self) -> str:
        try:
            return f": exit code {self._process.wait(EXIT_SECONDS)}"
        except subprocess.TimeoutExpired:
            return ""

    def _abandon(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait(EXIT_SECONDS)
