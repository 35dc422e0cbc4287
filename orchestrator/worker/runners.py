"""The runners of one worker: started through the guardian, reused while warm, watched, ended.

Runs in the worker's event loop; nothing here blocks or touches the database.
"""

import itertools
import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from orchestrator.clock import Clock
from orchestrator.errors import RunnerLost
from orchestrator.guardian.client import Guardian
from orchestrator.guardian.messages import (
    Cleared,
    Exited,
    GpuFault,
    GpuNews,
    GpuReport,
    GpuTested,
    RunnerSpec,
    Spawned,
    SpawnFailed,
    Stuck,
)
from orchestrator.worker.frames import Message
from orchestrator.worker.processes import RunnerKey, RunnerProcess
from orchestrator.worker.work import Callbacks, Ended, Work, about

logger = logging.getLogger(__name__)

#: How often limits and idle runners are looked at, in seconds; limits are kept to this precision.
WATCH_INTERVAL: Final = 0.1


class WorkListener(Protocol):
    """Who hears what became of work; called in the event loop."""

    def on_begun(self, runner: RunnerProcess, work: Work) -> None:
        """The runner starts this work now."""
        ...

    def on_report(self, runner: RunnerProcess, work: Work, report: Message) -> None:
        """The task ended and its runner lives on."""
        ...

    def on_unclean(self, gpus: tuple[str, ...], reason: str) -> None:
        """A runner did not start, because its GPUs did not come clean."""
        ...

    def on_start_tried(self, gpus: tuple[str, ...], *, started: bool) -> None:
        """A runner of tasks has started on these GPUs, or died before it took any work, for no fault of theirs seen."""
        ...

    def on_ended(self, runner: RunnerProcess, work: Work, ended: Ended) -> None:
        """The runner's process is gone, with everything it started, while this work ran (or had yet to start)."""
        ...

    def on_unstarted(self, runner: RunnerProcess, works: list[Work]) -> None:
        """The runner ended, or its line stalls, before it started these."""
        ...

    def on_retiring(self, runner: RunnerProcess) -> None:
        """The runner ends when its line is empty: it is to be given nothing more."""
        ...

    def on_free(self, runner: RunnerProcess) -> None:
        """The runner's line is empty."""
        ...

    def on_progress(self, work: Work, progress: dict[str, Any]) -> None:
        """The job reported progress."""
        ...

    def on_output(self, work: Work) -> None:
        """The job printed something."""
        ...

    def on_gpus(self, news: GpuNews) -> None:
        """The guardian read the GPUs, or failed to, or has to tell of some of them."""
        ...

    def on_turned(self, runner: RunnerProcess, message: Message) -> None:
        """The runner has put its models to sleep, or woken them, or could not."""
        ...


@dataclass(frozen=True, slots=True)
class RunnerBounds:
    """How long a warm runner is kept; 0 means without bound, but for ``idle_seconds``."""

    idle_seconds: float
    max_jobs: int = 0
    max_memory_mib: int = 0  # peak resident memory of the process

    def is_spent(self, jobs: int, memory_mib: int) -> bool:
        """Tell whether a runner that has done so many jobs and grown so large is to be replaced."""
        return bool(
            (self.max_jobs and jobs >= self.max_jobs) or (self.max_memory_mib and memory_mib > self.max_memory_mib)
        )


class Runners:
    """All runner processes of the worker."""

    def __init__(
        self, guardian: Guardian, listener: WorkListener, *, clock: Clock, grace_seconds: float, bounds: RunnerBounds
    ) -> None:
        self._guardian, self._listener, self._clock = guardian, listener, clock
        self._bounds, self._grace_seconds = bounds, grace_seconds
        self._runners: dict[str, RunnerProcess] = {}
        self._numbers = itertools.count(1)
        self._hub: Any = None

    def __iter__(self) -> Iterator[RunnerProcess]:
        return iter(self._runners.values())

    @property
    def guardian(self) -> Guardian:
        """The process that starts and ends runners."""
        return self._guardian

    def next_id(self) -> str:
        """Return a name for a runner that is about to be started."""
        return f"r{next(self._numbers)}"

    def register(self, hub: Any) -> None:
        """Read sockets and pipes in this event loop; called again whenever the loop was reset."""
        self._hub = hub
        hub.add_reader(self._guardian.fileno(), self.on_guardian_readable)
        for runner in self._runners.values():
            self._watch(runner)
        hub.call_repeatedly(WATCH_INTERVAL, self.watch)

    def start(self, spec: RunnerSpec, key: RunnerKey) -> RunnerProcess:
        """Start a runner; what it is given meanwhile waits in its socket."""
        pipes = self._guardian.spawn(spec)
        runner = RunnerProcess(
            spec.runner_id, key, pipes.control, pipes.control_far, pipes.output, command=spec.argv is not None
        )
        self._runners[runner.id] = runner
        self._watch(runner)
        return runner

    def find_idle(self, key: RunnerKey) -> RunnerProcess | None:
        """Return a warm runner without work."""
        for runner in self._runners.values():
            taken = runner.ending or runner.retiring or runner.command or runner.kept
            if runner.key == key and not (runner.line or taken):
                return runner
        return None

    def evict(self, gpus: tuple[str, ...], *, keep: RunnerKey | None) -> list[str]:
        """End idle runners that hold any of these GPUs, which go to somebody else; return those that are not gone."""
        wanted, leaving = set(gpus), []
        for runner in list(self._runners.values()):
            in_use = runner.line or (runner.kept and not runner.ending)
            if wanted.intersection(runner.key.gpus) and runner.key != keep and not in_use:
                leaving.append(runner.id)
                if not runner.ending:
                    self.end(runner, grace_seconds=0)
        return leaving

    def give(self, runner: RunnerProcess, work: Work) -> None:
        """Append work to the runner's line."""
        runner.give(work)
        if runner.front is work:
            self._begin(runner)

    def end(self, runner: RunnerProcess, *, grace_seconds: float | None = None) -> None:
        """End the runner and everything it started: TERM, then KILL after the grace, by default the running job's."""
        runner.ending = True
        if grace_seconds is None:
            job = None if runner.front is None else runner.front.job
            grace_seconds = self._grace_seconds if job is None else job.claimed.grace_seconds
        self._guardian.kill(runner.id, grace_seconds)

    def by_pid(self, pid: int) -> RunnerProcess | None:
        """Return the runner with this process id."""
        return next((runner for runner in self._runners.values() if runner.pid == pid), None)

    def holding(self, work_id: str) -> RunnerProcess | None:
        """Return the runner in whose line this work is."""
        return next((r for r in self._runners.values() if any(work.id == work_id for work in r.line)), None)

    def busy(self) -> bool:
        """Some runner has work."""
        return any(runner.line for runner in self._runners.values())

    def on_guardian_readable(self, *_: object) -> None:
        """Act on what the guardian says."""
        try:
            events = self._guardian.read_events()
        except RunnerLost as error:
            self._guardian_lost(error)
            return
        for event in events:
            match event:
                case Spawned():
                    self._spawned(event)
                case SpawnFailed():
                    self._gone(event.runner_id, Ended(None, None, "start", event.reason, unclean=event.unclean))
                case Exited():
                    ended = Ended(event.exit_code, event.signal, event.cause, peak_rss_mib=event.peak_rss_mib)
                    self._gone(event.runner_id, replace(ended, memory_kills=event.memory_kills))
                case GpuReport() | GpuFault() | GpuTested() | Cleared():
                    self._listener.on_gpus(event)
                case Stuck():
                    self._stuck(event)

    def watch(self) -> None:
        """Keep time limits and end runners that have been idle for too long."""
        now = self._clock.monotonic()
        for runner in list(self._runners.values()):
            work = runner.front
            if work is not None and work.begun_at is not None:
                self._keep_limits(runner, work, now - work.begun_at)
            elif work is None and self._is_unused(runner, now):
                self.end(runner, grace_seconds=1)

    def _is_unused(self, runner: RunnerProcess, now: float) -> bool:
        return not (runner.ending or runner.kept) and now - runner.idle_since > self._bounds.idle_seconds

    def _keep_limits(self, runner: RunnerProcess, work: Work, seconds: float) -> None:
        if work.time_limit and seconds > work.time_limit and not work.timed_out:
            work.timed_out = True
            self.end(runner, grace_seconds=0 if work.job is None else None)
            if work.job is None and work.callbacks.timed_out:
                work.callbacks.timed_out(soft=False, timeout=work.time_limit)
        elif work.soft_time_limit and seconds > work.soft_time_limit and not work.soft_signalled:
            work.soft_signalled = True
            self._guardian.signal(runner.id, signal.SIGUSR1, leader_only=True)
            if work.callbacks.timed_out:
                work.callbacks.timed_out(soft=True, timeout=work.soft_time_limit)

    def _watch(self, runner: RunnerProcess) -> None:
        if self._hub is not None:
            self._hub.add_reader(runner.channel, self._on_channel, runner)
            self._hub.add_reader(runner.output, self._on_output, runner)

    def _on_channel(self, runner: RunnerProcess) -> None:
        for message in runner.messages():
            if message.get("op") == "done":
                self._done(runner, message)
            elif message.get("op") == "turned":
                self._listener.on_turned(runner, message)
            elif message.get("op") == "loading":
                if runner.front is not None and runner.front.id == message.get("id"):
                    runner.front.loading = bool(message.get("on"))
            elif message.get("op") == "progress":
                work = runner.front
                if work is not None and work.id == message.get("id"):
                    self._listener.on_progress(work, message)

    def _on_output(self, runner: RunnerProcess) -> None:
        if not runner.read_output(self._listener.on_output) and self._hub is not None:
            self._hub.remove_reader(runner.output)

    def _done(self, runner: RunnerProcess, report: Message) -> None:
        # What the job printed is in the pipe before its report was sent: credit it before the job is closed.
        self._on_output(runner)
        work = runner.pop_front(str(report.get("id")))
        if work is None:
            logger.error("runner %s reported %s, which it was not running", runner.id, report.get("id"))
            return
        self._retire_spent(runner, report)
        if runner.line:
            runner.send_unsent()
            self._begin(runner)
        self._listener.on_report(runner, work, report)
        if not runner.line:
            runner.idle_since = self._clock.monotonic()
            if runner.retiring and not runner.ending:
                self.end(runner, grace_seconds=1)
            self._listener.on_free(runner)

    def _retire_spent(self, runner: RunnerProcess, report: Message) -> None:
        """Have a runner end that has served enough; what it has not begun goes to another one."""
        runner.jobs_done += 1
        if runner.jobs_done == 1 and runner.key.gpus:
            self._listener.on_start_tried(runner.key.gpus, started=True)
        memory = report.get("rss_mib")
        if not runner.retiring and self._bounds.is_spent(runner.jobs_done, memory if isinstance(memory, int) else 0):
            logger.info("runner %s has done %d jobs and is replaced", runner.id, runner.jobs_done)
            runner.retiring = True
            self._listener.on_retiring(runner)
            self.stall(runner)

    def _spawned(self, event: Spawned) -> None:
        runner = self._runners.get(event.runner_id)
        if runner is not None:
            runner.pid, runner.isolation = event.pid, event.isolation
            runner.idle_since = self._clock.monotonic()
            self._begin(runner)

    def _begin(self, runner: RunnerProcess) -> None:
        work = runner.front
        if work is None or runner.pid is None or work.begun_at is not None:
            return
        work.begun_at, work.began_at, work.pid = self._clock.monotonic(), self._clock.now(), runner.pid
        work.isolation = runner.isolation
        if work.callbacks.accepted:
            work.callbacks.accepted(runner.pid, time.monotonic())
        self._listener.on_begun(runner, work)

    def _gone(self, runner_id: str, ended: Ended) -> None:
        runner = self._runners.pop(runner_id, None)
        if runner is None:
            return
        was_ending, runner.ending, runner.gone = runner.ending, True, True
        if ended.cause != "killed":
            logger.info("runner %s (pid %s) ended: %s", runner_id, runner.pid, ended, extra=about(runner.front))
        self._on_channel(runner)  # what it reported before it ended
        runner.read_output(self._listener.on_output)
        if self._hub is not None:
            self._hub.remove_reader(runner.channel)
            self._hub.remove_reader(runner.output)
        if runner.stray and ended.cause == "exit" and not runner.command:
            logger.error("runner %s printed before it ended:\n%s", runner_id, runner.stray.decode("utf-8", "replace"))
        unstarted = runner.take_back_unstarted()
        started = list(runner.line)
        runner.line.clear()
        runner.forget()
        is_stillborn = ended.cause == "start" or (ended.cause == "exit" and not runner.jobs_done)
        if not started and unstarted and is_stillborn:
            # It is this work that cannot be started: given back, it would come at once. Not so if its GPUs are unclean.
            started = [] if ended.unclean else [unstarted.pop(0)]
            if not (ended.unclean or was_ending or runner.command) and runner.key.gpus:
                self._listener.on_start_tried(runner.key.gpus, started=False)
        if ended.unclean:
            self._listener.on_unclean(ended.unclean, ended.reason)
        if unstarted:
            self._listener.on_unstarted(runner, unstarted)
        for work in started:
            self._listener.on_ended(runner, work, ended)
        self._listener.on_free(runner)

    def _stuck(self, event: Stuck) -> None:
        """Go on without a runner that cannot be ended; its GPUs first, so that nothing is started on them."""
        self._listener.on_gpus(event)
        if not event.is_over:
            reason = f"KILL does not end {', '.join(f'pid {pid}' for pid in event.pids)}"
            self._gone(event.runner_id, Ended(None, signal.SIGKILL, "stuck", reason))

    def _guardian_lost(self, error: RunnerLost) -> None:
        logger.critical("the guardian is gone, and with it every runner: %s", error)
        if self._hub is not None:
            self._hub.remove_reader(self._guardian.fileno())
        for runner_id in list(self._runners):
            self._gone(runner_id, Ended(None, signal.SIGKILL, "guardian_lost", str(error)))
        raise RunnerLost("the guardian ended; the worker stops, its supervisor starts it again") from error

    def stall(self, runner: RunnerProcess) -> None:
        """Take back what waits behind a piece of work that runs longer than expected."""
        unstarted = runner.take_back_unstarted()
        if unstarted:
            self._listener.on_unstarted(runner, unstarted)


def callbacks_from(options: dict[str, Any]) -> Callbacks:
    """Return what the options of a pool's ``apply_async`` say; Celery's request passes its own methods."""
    request = getattr(options.get("callback"), "__self__", None)
    return Callbacks(
        accepted=options.get("accept_callback"),
        done=options.get("callback"),
        failed=options.get("error_callback"),
        timed_out=options.get("timeout_callback"),
        revoked=getattr(request, "revoked", None),
    )
