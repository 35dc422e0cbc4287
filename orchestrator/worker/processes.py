"""The worker's side of one runner: its socket, its output pipe and the line of work that it has been given."""

import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from orchestrator.worker import frames, task_log
from orchestrator.worker.frames import Message
from orchestrator.worker.work import Work

logger = logging.getLogger(__name__)

PIPE_READ: Final = 1 << 16
STRAY: Final = 4096


@dataclass(frozen=True, slots=True)
class RunnerKey:
    """Runners of equal key are interchangeable."""

    gpus: tuple[str, ...]
    tenant: str
    exclusive: bool
    host_memory_mib: int = 0  # that they may use, where control groups hold them to it; 0: no limit
    gpu_memory_mib: int | None = None  # what its leases have of its GPUs' memory, all together; None: not known


class RunnerProcess:
    """A process that runs work one after another; the first piece in ``line`` is the one that runs."""

    def __init__(
        self, runner_id: str, key: RunnerKey, channel: socket.socket, far: socket.socket, output: int, *, command: bool
    ) -> None:
        """Wrap the worker's ends.

        Args:
            runner_id: The guardian's name for it.
            key: What it can be used for.
            channel: The worker's end of the control socket, non-blocking.
            far: The runner's end, kept so that unstarted messages can be taken back.
            output: Read end of its output pipe, non-blocking.
            command: It runs one argv and then ends.
        """
        self.id, self.key, self.channel, self.far, self.output, self.command = (
            runner_id,
            key,
            channel,
            far,
            output,
            command,
        )
        self.pid: int | None = None
        self.isolation: str | None = None  # once it has begun
        self.line: deque[Work] = deque()
        self.idle_since = 0.0
        self.jobs_done = 0
        self.kept = False  # by a worker pool: idle or not, it ends with its lease
        self.retiring = False  # to end when its line is empty: it has served enough, or has grown too large
        self.ending = False  # told to end, or ended
        self.gone = False  # with everything it started
        self._nonce = "\x00" + secrets.token_hex(8) + ":"
        self.stray = b""  # the last of what it printed outside of any job
        self._speaker: Work | None = None  # whose output is being read
        self._partial = b""
        self._by_id: dict[str, Work] = {}

    @property
    def front(self) -> Work | None:
        """The work that runs, or is next to."""
        return self.line[0] if self.line else None

    def give(self, work: Work) -> None:
        """Append work to the line and send what the socket takes."""
        self.line.append(work)
        self._by_id[work.id] = work
        if self.command:
            work.sent, self._speaker = True, work
            return
        if work.message is not None:
            work.message["mark"] = f"{self._nonce}{work.id}\x00"
        self.send_unsent()

    def send_unsent(self) -> None:
        """Send the part of the line that the socket had no room for."""
        if self.command:
            return
        for work in self.line:
            if not work.sent and work.message is not None:
                try:
                    work.sent = frames.send(self.channel, work.message)
                except OSError as error:
                    logger.debug("runner %s is going: %s", self.id, error)
                    return
                if not work.sent:
                    return

    def turn(self, to: str) -> bool:
        """Have it put its models to ``sleep``, or ``wake`` them; False if its socket has no room."""
        try:
            return frames.send(self.channel, {"op": to})
        except OSError as error:
            logger.debug("runner %s is going: %s", self.id, error)
            return False

    def messages(self) -> Iterator[Message]:
        """Yield what the runner reported."""
        while True:
            try:
                message = frames.receive(self.channel)
            except (BlockingIOError, ConnectionError):
                return
            except ValueError as error:
                logger.error("runner %s sent a malformed report: %s", self.id, error)
                continue
            if message is None:
                return
            yield message

    def pop_front(self, work_id: str) -> Work | None:
        """Take the front off the line if it is ``work_id``."""
        if not self.line or self.line[0].id != work_id:
            return None
        work = self.line.popleft()
        self._by_id.pop(work_id, None)
        return work

    def take_back_unstarted(self) -> list[Work]:
        """Take back, in order, every piece of work that the runner has not started and now never will."""
        recovered = {work.id for work in self.line if not work.sent}
        while True:
            try:
                message = frames.receive(self.far)
            except BlockingIOError:
                break
            if message is None:
                break
            recovered.add(str(message.get("id")))  # what is no work has none
        taken = [work for work in self.line if work.id in recovered]
        for work in taken:
            self.line.remove(work)
            self._by_id.pop(work.id, None)
            work.sent = False
        return taken

    def read_output(self, note: Callable[[Work], None]) -> bool:
        """Read the pipe empty and credit each piece to the work that printed it; False at its end."""
        while True:
            try:
                data = os.read(self.output, PIPE_READ)
            except BlockingIOError:
                return True
            except OSError as error:
                logger.debug("output of runner %s ended: %s", self.id, error)
                return False
            if not data:
                self._credit(self._partial, note)
                self._partial = b""
                return False
            self._split(self._partial + data, note)
            if len(data) < PIPE_READ:
                return True

    def forget(self) -> None:
        """Close every descriptor."""
        self.channel.close()
        self.far.close()
        os.close(self.output)

    def _split(self, data: bytes, note: Callable[[Work], None]) -> None:
        nonce = self._nonce.encode()
        self._partial = b""
        while True:
            start = data.find(nonce)
            if start < 0:
                break
            end = data.find(b"\x00", start + len(nonce))
            if end < 0:
                self._credit(data[:start], note)
                self._partial = data[start:]
                return
            self._credit(data[:start], note)
            self._speaker = self._by_id.get(data[start + len(nonce) : end].decode("ascii", "replace"))
            data = data[end + 1 :]
        cut = data.rfind(nonce[:1])  # a mark may be cut in two by the read
        if cut >= 0 and nonce.startswith(data[cut : cut + len(nonce)]):
            data, self._partial = data[:cut], data[cut:]
        self._credit(data, note)

    def _credit(self, data: bytes, note: Callable[[Work], None]) -> None:
        work = self._speaker
        if data and work is not None and work.job is not None:
            work.job.output.feed(data)
            note(work)
        elif data and work is not None:
            task_log.write_through(data)
        elif data:
            self.stray = (self.stray + data)[-STRAY:]
