"""The guardian's loop: one thread that listens to its worker, its helpers and its runners, and keeps deadlines."""

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from typing import Any, Final

from orchestrator.guardian.channel import Channel, Frame
from orchestrator.guardian.clearing import Clearances
from orchestrator.guardian.gpu_tests import GpuTests
from orchestrator.guardian.handoff import Handoff
from orchestrator.guardian.helpers import RESTART_SECONDS, Nursery, Watch
from orchestrator.guardian.journal import Journal
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.leftovers import Leftovers
from orchestrator.guardian.locks import Note
from orchestrator.guardian.messages import Cause, GpuFault, GpuReport, GuardianEvent, RunnerSpec, event_to_document
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.guardian.tree import Forest
from orchestrator.guardian.wards import Wards

logger = logging.getLogger(__name__)

#: Longest sleep: the selector's clock stands still while the host is suspended, deadlines do not.
MOST_SLEEP_SECONDS: Final = 1.0
REAP_DEADLINE_SECONDS: Final = 2.0


class Supervisor:
    """Serves one worker until it is gone and all of its runners are too."""

    def __init__(
        self, channel: Channel, settings: GuardianSettings, journal: Journal, identity: Note, leftovers: Leftovers
    ) -> None:
        self._channel, self._journal, self._leftovers = channel, journal, leftovers
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._nursery, self._watch = Nursery(settings), Watch(settings)
        self._tests = GpuTests(settings)
        self._forest = Forest()
        self._handoff, ask = Handoff(settings.clean_memory_mib), self._watch.ask
        self._wards = Wards(settings, self._nursery, self._forest, journal, identity, self._report, self._handoff, ask)
        self._clearances = Clearances(settings, self._handoff, identity, self._wards, self._report, ask)
        self._is_closing = self._has_said_closed = False

    def run(self) -> None:
        """Serve; returns when the worker is gone, or has closed, and no process of any runner is left.

        The worker need not wait for what outlives KILL: this process stays for it, and keeps the locks of its GPUs.
        """
        self._channel.send({"op": "ready"})
        while not self._is_done:
            self._forest.spared = self._helpers()
            self._listen(self._next_timeout())
            self._reap()
            self._restart_helpers()
            if not self._is_closing:
                self._watch.try_again(boottime())
                for tested in self._tests.step(boottime()):
                    self._report(tested)
            if self._channel.closed and not self._is_closing:
                self._close("worker_lost")
            if self._is_closing and len(self._wards.stuck) == len(self._wards):
                self._say_closed()
        self._stop()

    @property
    def _is_done(self) -> bool:
        return self._is_closing and not len(self._wards) and not len(self._leftovers)

    def _close(self, cause: Cause) -> None:
        self._is_closing = True
        self._clearances.drop_all()
        self._wards.end_all(cause)

    def _next_timeout(self) -> float:
        now = boottime()
        dues = [self._wards.step(now), self._clearances.step(now), self._leftovers.step(now, self._report)]
        dues += [self._nursery.due, self._watch.wakes_at, self._tests.due]
        if self._is_done:
            return 0.0
        return max(0.0, min([MOST_SLEEP_SECONDS, *(due - now for due in dues if due is not None)]))

    def _listen(self, timeout: float) -> None:
        statuses = self._wards.statuses()
        with selectors.PollSelector() as selector:  # built anew each time: pipes come and go, and are few
            selector.register(self._woken, selectors.EVENT_READ)
            for channel in (self._channel, self._nursery.channel):
                if channel is not None and not channel.closed:
                    selector.register(channel, selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.pending else 0))
            for descriptor in statuses:
                selector.register(descriptor, selectors.EVENT_READ)
            if self._watch.pipe is not None:
                selector.register(self._watch.pipe, selectors.EVENT_READ)
            ready = {key.fd for key, _events in selector.select(timeout)}
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        self._read_worker()
        self._read_fork_server()
        for descriptor in ready & set(statuses):
            self._wards.on_status(statuses[descriptor])
        self._watch.is_eager = self._wards.has_shares()
        news = self._watch.read()
        self._handoff.note_reading(self._watch.samples, self._watch.read_at)
        self._wards.on_reading()
        if isinstance(news, GpuReport):
            news = GpuReport(self._tests.claim(self._wards.attribute(news.samples)))
        self._say_gpus(news)
        self._say_gpus(self._watch.check(boottime()))

    def _read_worker(self) -> None:
        if self._channel.closed:
            return
        self._channel.flush()
        for frame in self._channel.receive():
            self._obey(frame)

    def _read_fork_server(self) -> None:
        if self._nursery.channel is not None:
            self._nursery.channel.flush()
        for message in self._nursery.read():
            self._wards.on_fork_message(message)

    def _obey(self, frame: Frame) -> None:
        message: dict[str, Any] = frame.message
        match message["op"]:
            case "spawn":
                self._wards.add(RunnerSpec.from_document(message["spec"]), frame.descriptors)
            case "deadlines":
                self._wards.set_deadlines(message["deadlines"])
            case "signal":
                self._wards.send(message["runner"], message["signal"], leader_only=message["leader_only"])
            case "kill":
                self._wards.end(message["runner"], "killed", message["grace_seconds"])
            case "self_test":
                self._tests.ask(message["gpu"])
            case "close":
                self._close("killed")
            case "clear":
                self._clearances.add(message)
            case "drop_clearance":
                self._clearances.drop(message["lease"])
            case "used":
                self._handoff.note_use(message["gpus"], boottime())
            case unknown:
                logger.error("the worker asked for %r, which is unknown", unknown)

    def _report(self, event: GuardianEvent) -> None:
        if not self._channel.closed:
            self._channel.send(event_to_document(event))

    def _say_gpus(self, news: GpuReport | GpuFault | None) -> None:
        if news is None:
            return
        if self._channel.pending:  # the worker does not read; it gets the newest reading when it does
            self._watch.repeat()
            return
        self._report(news)

    def _say_closed(self) -> None:
        if not self._has_said_closed and not self._channel.closed:
            self._has_said_closed = True
            self._channel.send({"op": "closed", "stays": not self._is_done})

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._nursery.pid:
                self._read_fork_server()  # what it said before it ended
                can_start = self._nursery.on_ended(status)
                self._forest.spared.discard(pid)
                self._wards.on_fork_server_ended(can_start=can_start)
            elif pid in self._watch.pids:
                self._forest.spared.discard(pid)
                self._say_gpus(self._watch.on_ended(pid, status))
            elif pid in self._tests.pids:
                self._forest.spared.discard(pid)
                if (tested := self._tests.on_ended(pid, status)) is not None:
                    self._report(tested)
            else:
                self._wards.on_reaped(pid, status)

    def _restart_helpers(self) -> None:
        now = boottime()
        self._nursery.check(now)
        for helper in (self._nursery, self._watch):
            if helper.due is not None and now >= helper.due and not self._is_closing:
                try:
                    helper.start()
                except OSError as error:  # no memory, processes or descriptors just now
                    logger.error("a helper cannot be started: %s", error)
                    helper.due = now + RESTART_SECONDS

    def _stop(self) -> None:
        """End the helpers, so that nothing is left when this process is."""
        self._journal.append("stop")
        self._say_closed()
        helpers = self._helpers()
        for pid in helpers:
            os.kill(pid, signal.SIGKILL)  # children that nobody has reaped: the pids are theirs
        deadline = boottime() + REAP_DEADLINE_SECONDS
        while helpers and boottime() < deadline:  # a driver may keep the sampler from ending
            pid, _status = os.waitpid(-1, os.WNOHANG)
            helpers.discard(pid)
            if pid == 0:
                time.sleep(0.005)

    def _helpers(self) -> set[int]:
        return {pid for pid in (self._nursery.pid,) if pid} | self._watch.pids | self._tests.pids


def _note(_signum: int, _frame: object) -> None:
    """Do nothing: the wakeup descriptor has told the loop."""
