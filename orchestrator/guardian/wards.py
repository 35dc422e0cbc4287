"""The runners in the guardian's care, from the request to the end of their last process."""

import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from orchestrator.domain.cluster import GpuSample
from orchestrator.guardian.attribution import attribute
from orchestrator.guardian.cgroups import Isolation
from orchestrator.guardian.channel import Document
from orchestrator.guardian.handoff import Handoff
from orchestrator.guardian.helpers import Nursery
from orchestrator.guardian.journal import Journal
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.locks import DeviceLockFailed, DeviceLocks, Note
from orchestrator.guardian.messages import Cause, Exited, GuardianEvent, RunnerSpec, Spawned, SpawnFailed, Stuck
from orchestrator.guardian.processes import Process, read_process, send_signal
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.guardian.tree import Forest, Tree
from orchestrator.guardian.ward import Ending, Stage, Ward, describe, dues

logger = logging.getLogger(__name__)

LOCK_RETRY_SECONDS: Final = 0.05
CLEAN_LOOK_SECONDS: Final = 0.1  # how often a GPU that is not clean is read
TERM_LOOK_SECONDS: Final = 0.2  # how often a tree that was asked to end is looked at
MOST_LOOK_SECONDS: Final = 0.5


class Wards:
    """All runners of one guardian; ``report`` receives their events."""

    def __init__(
        self,
        settings: GuardianSettings,
        nursery: Nursery,
        forest: Forest,
        journal: Journal,
        identity: Note,
        report: Callable[[GuardianEvent], None],
        handoff: Handoff,
        ask_reading: Callable[[], None],
    ) -> None:
        """Start without runners; ``identity`` is this guardian's note, whose mark begins those of its runners.

        ``ask_reading`` has the GPUs read at once; ``handoff`` hears what came of it, and then ``on_reading`` is called.
        """
        self._ask_reading, self._handoff = ask_reading, handoff
        self._settings, self._nursery, self._forest = settings, nursery, forest
        self._journal, self._identity, self._report = journal, identity, report
        self._lock_dir, self._isolation = settings.find_lock_dir(), Isolation.of_host(settings)
        self._wards: dict[str, Ward] = {}

    def __len__(self) -> int:
        return len(self._wards)

    def __contains__(self, runner_id: object) -> bool:
        return runner_id in self._wards

    @property
    def stuck(self) -> list[str]:
        """Runners that outlive KILL."""
        return [runner_id for runner_id, ward in self._wards.items() if ward.is_stuck]

    def add(self, spec: RunnerSpec, descriptors: list[int]) -> None:
        """Begin to start a runner; takes the descriptors of its control socket and its output."""
        if spec.runner_id in self._wards:
            for descriptor in descriptors:
                os.close(descriptor)
            self._report(SpawnFailed(spec.runner_id, "a runner of this name is alive"))
            return
        mark = f"{self._identity.mark}:{spec.runner_id}"
        note = Note(mark, self._identity.guardian, self._identity.guardian_start_ticks, self._identity.boot_id)
        locks = DeviceLocks(self._lock_dir, spec.gpus, note, exclusive=spec.exclusive)
        until = boottime() + self._settings.lock_wait_seconds
        ward = Ward(spec, Tree(mark), descriptors, locks, until, spec.deadline)
        self._wards[spec.runner_id] = ward
        self._lock(ward, boottime())

    def set_deadlines(self, deadlines: Mapping[str, float]) -> None:
        """Set when runners are killed; unknown ones have ended meanwhile."""
        for runner_id, deadline in deadlines.items():
            if runner_id in self._wards:
                self._wards[runner_id].deadline = deadline

    def on_reading(self) -> None:
        """The GPUs were read; who waited for a clean one and has it starts at once, others look again in a while."""
        for ward in self._wards.values():
            if ward.stage is Stage.CLEANING and not self._unclean(ward):
                ward.look_at = 0.0

    def attribute(self, samples: Sequence[GpuSample]) -> tuple[GpuSample, ...]:
        """Return a reading with the runner of every process; without the processes that are gone by now."""
        runners: dict[str | None, str] = {ward.tree.mark: runner_id for runner_id, ward in self._wards.items()}
        trees = self._trees()
        return attribute(samples, lambda pid, start: runners.get(self._forest.owner(pid, start, trees)))

    def has_shares(self) -> bool:
        """Some runner shares its GPU."""
        return any(ward.spec.gpus and not ward.spec.exclusive for ward in self._wards.values())

    def send(self, runner_id: str, signum: int, *, leader_only: bool) -> None:
        """Signal a running runner's process group, or its first process alone."""
        ward = self._wards.get(runner_id)
        if ward is None or ward.stage is not Stage.RUNNING or ward.pid is None:
            return
        leader = read_process(ward.pid)
        if leader is None or leader.start_ticks != ward.start_ticks:
            return
        if leader_only or leader.pgid != leader.pid:
            send_signal(leader, signum)
            return
        try:
            os.killpg(leader.pid, signum)
        except ProcessLookupError:
            logger.debug("runner %s ended before its signal", runner_id)

    def end(self, runner_id: str, cause: Cause, grace_seconds: float) -> None:
        """End a runner and all that it started: TERM, and KILL after the grace. The earlier of two KILLs counts."""
        ward = self._wards.get(runner_id)
        if ward is None:
            return
        now = boottime()
        if ward.stage is not Stage.RUNNING and ward.stage is not Stage.ENDED:
            grace_seconds = 0  # nothing of the job runs that could use it
        if ward.ending is None:
            ward.ending = Ending(cause, now + grace_seconds, now)
            self._journal.append("kill", **describe(ward), cause=cause, grace_seconds=grace_seconds)
        else:
            ward.ending.kill_at = min(ward.ending.kill_at, now + grace_seconds)
            ward.ending.look_at = now

    def end_all(self, cause: Cause) -> None:
        """Kill every runner."""
        for runner_id in list(self._wards):
            self.end(runner_id, cause, 0)

    def statuses(self) -> dict[int, str]:
        """Return the status pipes to listen to, with their runners."""
        return {ward.status: runner_id for runner_id, ward in self._wards.items() if ward.status is not None}

    def on_fork_message(self, message: Document) -> None:
        """Act on what the fork server says."""
        if message["op"] == "exited":
            self._on_leader_ended(message["pid"], message["status"], message["peak_rss_mib"])
            return
        ward = self._wards.get(message["runner"])
        if ward is None:
            return
        if message["op"] == "not_forked":
            ward.failure, ward.stage = message["reason"], Stage.ENDED
            self._settle(ward)
            return
        ward.pid = ward.tree.leader = message["pid"]
        ward.start_ticks, ward.stage = message["start_ticks"], Stage.STARTING
        if ward.ending is not None:
            ward.ending.look_at = 0.0  # it was to be ended before it had a pid
        self._journal.append("began", **describe(ward))

    def on_status(self, runner_id: str) -> None:
        """The status pipe has a failure to tell, or ended because the runner has begun."""
        ward = self._wards.get(runner_id)
        if ward is None or ward.status is None or ward.stage is Stage.FORKING:
            return
        try:
            reason = os.read(ward.status, 4096).decode("utf-8", "replace")
        except BlockingIOError:
            return
        os.close(ward.status)
        ward.status = None
        if reason:
            ward.failure = reason
        elif ward.pid is not None and ward.stage is Stage.STARTING:
            ward.stage = Stage.RUNNING
            self._report(Spawned(runner_id, ward.pid, ward.start_ticks, self._isolation.name))

    def on_reaped(self, pid: int, status: int) -> None:
        """The guardian itself reaped a process: an orphan, or a leader whose fork server is gone."""
        self._on_leader_ended(pid, status, 0)
        for ward in self._wards.values():
            if ward.ending is not None:
                ward.ending.look_at = 0.0

    def on_fork_server_ended(self, *, can_start: bool) -> None:
        """Runners that were being forked have failed, and those that wait if there will be no other fork server.

        The kernel has killed those that ran.
        """
        now = boottime()
        for ward in list(self._wards.values()):
            runner_id = ward.spec.runner_id
            is_lost = not self._nursery.is_waiting(runner_id) or (not can_start and self._nursery.forget(runner_id))
            if ward.stage is Stage.FORKING and is_lost:
                ward.failure, ward.stage = "the fork server ended", Stage.ENDED
                self._settle(ward)
            elif ward.stage in (Stage.STARTING, Stage.RUNNING):
                ward.is_abandoned = True
                ward.ending = ward.ending or Ending("exit", now, now)

    def step(self, now: float) -> float | None:
        """Do what is due; returns when something will be due next, or None."""
        for ward in list(self._wards.values()):
            self._step(ward, now)
        return min((due for ward in self._wards.values() for due in dues(ward)), default=None)

    def _step(self, ward: Ward, now: float) -> None:
        if ward.deadline is not None and now >= ward.deadline:
            ward.deadline = None
            self.end(ward.spec.runner_id, "deadline", 0)
        if ward.stage is Stage.LOCKING and now >= ward.look_at:
            self._lock(ward, now)
        if ward.stage is Stage.CLEANING and now >= ward.look_at and ward.ending is None:
            self._await_clean(ward, now)
        if ward.ending is None:
            return
        waits = ward.stage in (Stage.LOCKING, Stage.CLEANING)
        if waits or (ward.stage is Stage.FORKING and self._nursery.forget(ward.spec.runner_id)):
            ward.failure, ward.stage = "ended before it started", Stage.ENDED
            self._settle(ward)
        elif now >= ward.ending.look_at:
            self._pursue(ward, ward.ending, now)

    def _lock(self, ward: Ward, now: float) -> None:
        try:
            if ward.locks.try_acquire():
                ward.clean_deadline = now + self._settings.clean_wait_seconds
                self._await_clean(ward, now)
                return
            ward.failure = ward.locks.holder() if now >= ward.lock_deadline else None
        except DeviceLockFailed as error:
            ward.failure = str(error)
        ward.look_at = now + LOCK_RETRY_SECONDS
        if ward.failure is not None:
            ward.stage = Stage.ENDED
            self._settle(ward)

    def _await_clean(self, ward: Ward, now: float) -> None:
        """Start the runner once its GPUs are clean."""
        unclean = self._unclean(ward)
        if not unclean:
            self._fork(ward)
        elif now < ward.clean_deadline:
            ward.stage, ward.look_at = Stage.CLEANING, now + CLEAN_LOOK_SECONDS
            self._ask_reading()
        else:
            ward.failure, ward.unclean, ward.stage = "; ".join(unclean.values()), tuple(unclean), Stage.ENDED
            self._settle(ward)

    def _unclean(self, ward: Ward) -> dict[str, str]:
        """Return which of a runner's GPUs are in doubt, and why; a share is others' as well, and not judged."""
        return self._handoff.doubts(ward.spec.gpus) if ward.spec.exclusive else {}

    def _fork(self, ward: Ward) -> None:
        self._journal.append("spawn", **describe(ward))
        ward.stage = Stage.FORKING
        try:
            spec = self._isolation.enter(ward.spec, ward.tree.mark, self._handoff.samples())
            ward.status, theirs = os.pipe()
            os.set_blocking(ward.status, False)
        except OSError as error:
            ward.failure, ward.stage = f"no pipe or no group: {error.strerror} {error.filename or ''}", Stage.ENDED
            self._settle(ward)
            return
        descriptors, ward.descriptors = [*ward.descriptors, theirs], []
        self._nursery.fork(spec, ward.tree.mark, descriptors)

    def _on_leader_ended(self, pid: int, status: int, peak_rss_mib: int) -> None:
        for ward in self._wards.values():
            if ward.pid == pid and ward.stage in (Stage.STARTING, Stage.RUNNING):
                if ward.status is not None:
                    self.on_status(ward.spec.runner_id)
                ward.exit_status, ward.peak_rss_mib, ward.stage = status, peak_rss_mib, Stage.ENDED
                self._settle(ward)
                return

    def _settle(self, ward: Ward) -> None:
        """The leader is gone: finish, or end what it left behind."""
        if self._forest.is_gone(ward.tree, self._trees()):
            self._finish(ward)
            return
        now = boottime()
        if ward.ending is None:
            grace = 0.0 if ward.failure is not None else self._settings.leftover_grace_seconds
            ward.ending = Ending("exit", now + grace, now)
        self._pursue(ward, ward.ending, now)

    def _pursue(self, ward: Ward, ending: Ending, now: float) -> None:
        """Signal what is alive of a tree, and finish when nothing is."""
        trees = self._trees()
        if now >= ending.kill_at:
            self._forest.kill(ward.tree, trees)
            ending.look_at = now + ending.pause
            ending.pause = min(2 * ending.pause, MOST_LOOK_SECONDS)
            ending.killed_at = now if ending.killed_at is None else ending.killed_at
        else:
            _ask_to_end(self._forest.find(trees)[ward.tree.mark], ending.asked)
            ending.look_at = min(ending.kill_at, now + TERM_LOOK_SECONDS)
        if ward.is_abandoned and ward.pid is not None and read_process(ward.pid) is None:
            ward.stage = Stage.ENDED  # the fork server reaped it, and took its exit status along
        if ward.stage is Stage.ENDED and self._forest.is_gone(ward.tree, trees):
            self._finish(ward)
        elif ending.killed_at is not None and now - ending.killed_at >= self._settings.kill_wait_seconds:
            self._give_up(ward, [process.pid for process in self._forest.find(trees)[ward.tree.mark]])

    def _give_up(self, ward: Ward, pids: Sequence[int]) -> None:
        """What outlives KILL cannot be waited for: it is told, once. The locks stay, and it is killed on and on."""
        if not ward.is_stuck:
            ward.is_stuck = True
            self._journal.append("stuck", **describe(ward), pids=list(pids))
            self._report(Stuck(ward.spec.runner_id, ward.spec.gpus, tuple(pids)))

    def _finish(self, ward: Ward) -> None:
        """Nothing of the runner is left."""
        if self._wards.pop(ward.spec.runner_id, None) is None:
            return
        for descriptor in [*ward.descriptors, *([] if ward.status is None else [ward.status])]:
            os.close(descriptor)
        code = None if ward.exit_status is None else os.waitstatus_to_exitcode(ward.exit_status)
        exit_code, signum = (code, None) if code is None or code >= 0 else (None, -code)
        cause: Cause = "exit" if ward.ending is None else ward.ending.cause
        values = {"exit_code": exit_code, "signal": signum, "cause": cause, "failure": ward.failure}
        self._journal.append("exit", **describe(ward), **values)
        kills = self._isolation.leave(ward.tree.mark)
        self._handoff.note_use(ward.spec.gpus if ward.pid is not None else (), boottime())
        ward.locks.release()  # after the record: the next holder's cannot be older than this one
        if ward.is_stuck:
            self._report(Stuck(ward.spec.runner_id, ward.spec.gpus, (), is_over=True))
        elif ward.failure is not None:
            self._report(SpawnFailed(ward.spec.runner_id, ward.failure, ward.unclean))
        else:
            self._report(Exited(ward.spec.runner_id, exit_code, signum, cause, ward.peak_rss_mib, kills))

    def _trees(self) -> list[Tree]:
        return [ward.tree for ward in self._wards.values()]


def _ask_to_end(alive: Iterable[Process], asked: set[tuple[int, int]]) -> None:
    for process in alive:
        identity = (process.pid, process.start_ticks)
        if identity not in asked:
            asked.add(identity)
            send_signal(process, signal.SIGTERM)
            send_signal(process, signal.SIGCONT)  # one that is stopped would not hear it
