"""The guardian's two helper processes: the fork server and the sampler, started again whenever they end."""

import contextlib
import json
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from orchestrator.domain.cluster import GpuSample
from orchestrator.guardian.channel import Channel, Document
from orchestrator.guardian.hung_cards import HungCards
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.messages import RUNNER_ID, GpuFault, GpuReport, RunnerSpec, sample_from_document
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.guardian.spawning import start_helper

logger = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
#: A driver may keep processes from ending: so many samplers are left behind, no more.
MOST_LEFT: Final = 4
#: Room in the fork server's environment for a runner's mark, which its forks write over it.
MARK_ROOM: Final = 128
HANDED: Final = 3  # the number under which a helper finds its descriptor


class Nursery:
    """The fork server, as the guardian sees it."""

    def __init__(self, settings: GuardianSettings) -> None:
        self._preload, self._import_path = list(settings.preload), list(settings.import_path)
        self._preload_deadline_seconds = settings.preload_deadline_seconds
        self._log = {"log_format": settings.log_format, "host": settings.node}
        self._started_at = 0.0
        self._waiting: deque[tuple[RunnerSpec, str, list[int]]] = deque()
        self._ready = False
        self.due: float | None = None  # when it is started again
        self.channel: Channel | None = None
        self.pid = 0
        self.start()

    def start(self) -> None:
        """Start the fork server; what waits is forked once it is ready."""
        ours, theirs = socket.socketpair()
        arguments = [str(HANDED), str(os.getpid())]
        with theirs, contextlib.ExitStack() as undo:
            undo.enter_context(ours)
            self.pid = start_helper(
                "orchestrator.guardian.fork_server",
                arguments,
                {HANDED: theirs.fileno()},
                **{RUNNER_ID: "-" * MARK_ROOM},
            )
            undo.pop_all()
        self.due, self.channel, self._started_at = None, Channel(ours), boottime()
        what = {"modules": self._preload, "import_path": self._import_path, "log": self._log}
        self.channel.send({"op": "preload"} | what)

    def fork(self, spec: RunnerSpec, mark: str, descriptors: list[int]) -> None:
        """Ask for a runner; takes the descriptors of its control socket, its output and its status pipe."""
        self._waiting.append((spec, mark, descriptors))
        self._send_waiting()

    def is_waiting(self, runner_id: str) -> bool:
        """The request has not been sent yet."""
        return any(spec.runner_id == runner_id for spec, _mark, _descriptors in self._waiting)

    def forget(self, runner_id: str) -> bool:
        """Drop a request that has not been sent; False if it has."""
        for request in self._waiting:
            if request[0].runner_id == runner_id:
                self._waiting.remove(request)
                for descriptor in request[2]:
                    os.close(descriptor)
                return True
        return False

    def read(self) -> Iterator[Document]:
        """Yield what the fork server says about runners."""
        if self.channel is None:
            return
        for message, _descriptors in self.channel.receive():
            if message["op"] == "ready":
                for fault in message["faults"]:
                    logger.warning("%s", fault)
                self._ready = True
                self._send_waiting()
            else:
                yield message

    def check(self, now: float) -> None:
        """End a fork server that an import keeps from becoming ready."""
        if self.pid and not self._ready and now > self._started_at + self._preload_deadline_seconds:
            logger.error("importing %s takes more than %g s", self._preload, self._preload_deadline_seconds)
            self._started_at = now
            os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the pid is its own

    def on_ended(self, status: int) -> bool:
        """The fork server is gone, and the kernel has killed the runners that it forked; False if it cannot start."""
        code = os.waitstatus_to_exitcode(status)
        logger.error("the fork server ended with %d and is started again", code)
        can_start = self._ready or bool(self._preload)
        if self._preload and not self._ready:
            logger.error("from now on runners import the app themselves, which takes longer")
            self._preload = []
        if self.channel is not None:
            self.channel.close()
        self.channel, self._ready, self.pid = None, False, 0
        self.due = boottime() + RESTART_SECONDS
        return can_start

    def _send_waiting(self) -> None:
        while self._ready and self._waiting and self.channel is not None:
            spec, mark, descriptors = self._waiting.popleft()
            document = spec.to_document()
            document["environment"][RUNNER_ID] = mark
            self.channel.send({"op": "fork", "runner": spec.runner_id, "spec": document}, descriptors)


class Watch:
    """The sampler, as the guardian sees it: says what the worker must hear about the GPUs."""

    def __init__(self, settings: GuardianSettings) -> None:
        self._settings = settings
        self._simulated = [] if settings.simulated_gpus is None else [str(settings.simulated_gpus)]
        self._partial = b""
        self._said: object = None  # what the last event rested on
        self._said_at = 0.0
        self._heard_at = 0.0
        self._hung, self._left = HungCards(settings), set[int]()  # left: samplers that were killed and have not ended
        self._about: int | None = None  # the card that the sampler is asking, by its index
        self._asking = -1  # write end of the sampler's stdin
        self.samples: tuple[GpuSample, ...] = ()  # the last reading, whether or not it was news
        self.read_at = 0.0
        self.is_eager = False  # every reading is news: shares are held to what they have
        self.due: float | None = None
        self.pipe: int | None = None
        self.pid = 0
        self.start()

    @property
    def pids(self) -> set[int]:
        """The sampler and whatever else reads GPUs; not for the guardian to end as strays."""
        return {pid for pid in (self.pid,) if pid} | self._left | self._hung.pids

    @property
    def wakes_at(self) -> float | None:
        """When something is to be done."""
        return min((due for due in (self.due, self._hung.due) if due is not None), default=None)

    def start(self) -> None:
        """Start the sampler."""
        if len(self._left) >= MOST_LEFT:
            self.due = boottime() + RESTART_SECONDS
            return
        ours, theirs = os.pipe()
        asked, asking = os.pipe()
        but = ",".join(map(str, self._hung.indexes))
        cards = f"but:{but}" if but else "all"
        arguments = [str(os.getpid()), str(self._settings.sample_seconds), cards, *self._simulated]
        try:
            self.pid = start_helper("orchestrator.guardian.sampler", arguments, {0: asked, 1: theirs})
        except OSError:
            os.close(ours)
            os.close(asking)
            raise
        finally:
            os.close(theirs)
            os.close(asked)
        for end in (ours, asking):
            os.set_blocking(end, False)
        self.pipe, self.due, self._partial, self._heard_at = ours, None, b"", boottime()
        self._asking, self._about = asking, None

    def ask(self) -> None:
        """Have the GPUs read at once."""
        if self._asking >= 0:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # asked already; or it is ending
                os.write(self._asking, b"?")

    def read(self) -> GpuReport | GpuFault | None:
        """Return news of the GPUs; None when there is nothing that the worker does not know."""
        if self.pipe is None:
            return None
        try:
            data = os.read(self.pipe, 1 << 20)
        except BlockingIOError:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        if not data:  # it is ending; `on_ended` says so
            os.close(self.pipe)
            self.pipe = None
        if lines:
            self._heard_at = boottime()
        news = None
        for line in lines:
            said = json.loads(line)
            self._about = said.get("about")
            news = said if "about" not in said else news
        return None if news is None else self._judge(news)

    def check(self, now: float) -> GpuFault | None:
        """Notice that the driver has been silent for too long: by one card, which is left out, or by all."""
        if self.pid == 0 or now < self._heard_at + self._settings.sampler_deadline_seconds:
            return None
        about = self._about
        self._leave(now)
        words = f"has not answered for {self._settings.sampler_deadline_seconds:g} s"
        if about is None:
            return self._fault(f"the GPU driver {words}")
        logger.error("GPU %d %s; the others are read without it", about, words)
        self._hung.add(about)
        return None

    def on_ended(self, pid: int, status: int) -> GpuFault | None:
        """The sampler is gone, or one that was left, or the try of a card."""
        if pid in self._hung.pids:
            if self._hung.on_ended(pid, status) and self.pid:
                self._leave(boottime())  # the next one reads that card too
            return None
        if pid in self._left:
            self._left.remove(pid)
            return None
        self._close()
        self.due = boottime() + RESTART_SECONDS
        return self._fault(f"the GPU sampler ended with {os.waitstatus_to_exitcode(status)}")

    def try_again(self, now: float) -> None:
        """Try the cards that hung their reader, when their time has come."""
        self._hung.step(now)

    def _leave(self, now: float) -> None:
        """Have another sampler started, without waiting for the end of this one: its driver may keep it from that."""
        os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the pid is its own
        self._left.add(self.pid)
        self._close()
        self.due = now

    def _close(self) -> None:
        if self.pipe is not None:
            os.close(self.pipe)
        if self._asking >= 0:
            os.close(self._asking)
        self.pipe, self.pid, self._asking = None, 0, -1

    def repeat(self) -> None:
        """Say the next reading even if nothing changed: the last one was not sent."""
        self._said = None

    def _judge(self, reading: dict[str, Any]) -> GpuReport | GpuFault | None:
        if "fault" in reading:
            return self._fault(reading["fault"])
        samples = tuple(sample_from_document(sample) for sample in reading["samples"])
        self.samples, self.read_at = samples, reading["at"]
        samples = self._hung.complete(samples)  # which are doubted, and have no reading that hand-offs could rest on
        basis = [_placement_basis(sample) for sample in samples]
        return GpuReport(samples) if self._is_news(basis) or self.is_eager else None

    def _fault(self, reason: str) -> GpuFault | None:
        return GpuFault(reason) if self._is_news(reason) else None

    def _is_news(self, basis: object) -> bool:
        now = boottime()
        if basis == self._said and now < self._said_at + self._settings.report_seconds:
            return False
        self._said, self._said_at = basis, now
        return True


def _placement_basis(sample: GpuSample) -> tuple[object, ...]:
    """What decides whether a GPU can be used; load, heat and power change with every reading and decide nothing."""
    errors = (sample.xid_count, sample.ecc_uncorrected)
    return sample.gpu, sample.used_mib, sample.health, sample.processes, sample.slowed_by, errors
