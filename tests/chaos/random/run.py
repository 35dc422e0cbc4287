"""A randomized run: load and faults by a plan, then peace, then the verdict."""

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.domain.job import TERMINAL_STATES
from orchestrator.domain.request import CommandRequest
from orchestrator.errors import Unavailable
from tests.chaos.random.faults import NothingToHit, inject
from tests.chaos.random.load import MAY_END, SUCCEEDS, Acknowledged, Submitter
from tests.chaos.random.plan import Fault, plan_faults, plan_load
from tests.chaos.random.world import World
from tests.support.waiting import wait_for

SUBMITTERS: Final = 3
PROGRESS_SECONDS: Final = 10.0
TICK_SECONDS: Final = 0.1
HEAL_SECONDS: Final = 240.0
PROBE_SECONDS: Final = 90.0


@dataclass
class Figures:
    """What a run was and how it went."""

    seed: int
    seconds: float
    database: str
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    skipped: collections.Counter[str] = field(default_factory=collections.Counter)
    recovery: dict[str, list[float]] = field(default_factory=dict)  # kind -> seconds from its end to a finished probe
    states: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    lost_attempts: int = 0
    repeats: dict[str, int] = field(default_factory=dict)
    unplanned_ends: dict[str, list[int]] = field(default_factory=dict)
    settle_seconds: float = 0.0
    checked: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


@dataclass
class _Probe:
    """A job of the highest priority that is submitted as a fault ends."""

    kind: str
    since: float
    job_id: str | None = None


class Run:
    """One run; everything but the submits is done in the caller's thread, which the servers must outlive."""

    def __init__(self, world: World, figures: Figures, say: Callable[[str], None], *, per_second: float) -> None:
        self._world, self.figures, self._say = world, figures, say
        self._told = Acknowledged()
        self._failed: set[str] = set()
        self._probes: list[_Probe] = []
        self._faults = plan_faults(figures.seed, figures.seconds, database=figures.database)
        self._wishes = plan_load(figures.seed, figures.seconds, per_second=per_second)
        self._undo: list[tuple[float, str, Callable[[], None]]] = []
        self._probes_made = 0

    def play(self) -> None:
        """Play the plan to its end, heal, wait, and judge."""
        submitters = [
            Submitter(self._world.cluster, self._world.api_url, self._wishes[n::SUBMITTERS], self._told)
            for n in range(SUBMITTERS)
        ]
        began = time.monotonic()
        for submitter in submitters:
            submitter.start()
        self._storm(began)
        for submitter in submitters:
            submitter.stop()
        self._say("healing")
        healed = time.monotonic()
        for _, _, undo in self._undo:
            undo()
        self._world.heal()
        self._settle(submitters)
        broken = sum(not submitter.is_done for submitter in submitters)
        self.figures.violations += [f"submit: {broken} submitters ended by an error"] * bool(broken)
        self.figures.settle_seconds = round(time.monotonic() - healed, 1)
        self._judge()

    def _storm(self, began: float) -> None:
        shown = began
        faults = collections.deque(self._faults)
        while (now := time.monotonic() - began) < self.figures.seconds:
            while faults and faults[0].at <= now:
                self._begin(faults.popleft(), began)
            self._end_due(now)
            self._world.revive()
            self._look_at_probes()
            if time.monotonic() - shown >= PROGRESS_SECONDS:
                shown = time.monotonic()
                self._say(self._progress(now))
            time.sleep(TICK_SECONDS)

    def _begin(self, fault: Fault, began: float) -> None:
        try:
            undo = inject(self._world, fault, self._failed)
        except (NothingToHit, Unavailable):
            self.figures.skipped[fault.kind] += 1
            return
        self.figures.faults[fault.kind] += 1
        self._undo.append((time.monotonic() - began + fault.seconds, fault.kind, undo))

    def _end_due(self, now: float) -> None:
        for one in [one for one in self._undo if one[0] <= now]:
            self._undo.remove(one)
            one[2]()
            self._probes.append(_Probe(one[1], time.monotonic()))

    def _look_at_probes(self) -> None:
        """Submit what is not submitted, and take down what has ended."""
        if any(kind == "lock_database" for _, kind, _ in self._undo):
            return  # a submit would wait in this thread, which has to end the fault
        for probe in list(self._probes):
            try:
                if probe.job_id is None:
                    self._probes_made += 1
                    request = CommandRequest(argv=("true",), gpus=0, priority=9, name="probe")
                    probe.job_id = self._world.cluster.submit(request)[0]
                    self._told.kinds[probe.job_id] = "probe"
                ended = self._world.cluster.job(probe.job_id).state in TERMINAL_STATES
            except Unavailable:
                continue
            if ended:
                self._probes.remove(probe)
                self.figures.recovery.setdefault(probe.kind, []).append(round(time.monotonic() - probe.since, 2))

    def _settle(self, submitters: list[Submitter]) -> None:
        """Wait until everything acknowledged has ended; what has not is told by the checker."""
        try:
            wait_for(lambda: self._is_settled(submitters), within_seconds=HEAL_SECONDS, describe="all jobs have ended")
        except AssertionError as error:
            self.figures.violations.append(f"settled: {error}")

    def _is_settled(self, submitters: list[Submitter]) -> bool:
        self._world.revive()
        self._look_at_probes()
        time.sleep(0.5)
        try:
            counts = self._world.cluster.runtime.jobs.count_by_state()
        except Unavailable:
            return False
        done = not any(count for state, count in counts.items() if state not in TERMINAL_STATES)
        return done and not self._probes and not any(submitter.is_alive() for submitter in submitters)

    def _judge(self) -> None:
        figures, cluster = self.figures, self._world.cluster
        figures.states = {state.value: n for state, n in cluster.runtime.jobs.count_by_state().items() if n}
        figures.repeats = dict(self._told.repeats)
        figures.unplanned_ends = {role.name: role.unplanned for role in self._world.roles.values() if role.unplanned}
        figures.violations += [f"submit: {key} was never acknowledged" for key in self._told.given_up]
        for job_id, kind in self._told.kinds.items():
            job = cluster.runtime.jobs.get(job_id)
            if job is None:
                continue  # the checker tells it
            attempts = cluster.runtime.jobs.attempts(job_id)
            figures.attempts += len(attempts)
            figures.lost_attempts += sum(one.outcome == "lose" for one in attempts)
            may = MAY_END.get(kind, SUCCEEDS)
            if job.state in TERMINAL_STATES and job.state not in may and job_id not in self._failed:
                why = job.reason or job.error
                figures.violations.append(f"outcome: job {job_id} ({kind}) is {job.state.value}: {why}")
        dumps = [cluster.dumps] if cluster.dumps.exists() else []
        stopped = any(kind in figures.faults for kind in ("stop_guardian", "stop_host"))
        more: dict[str, Any] = {"skew": None} if stopped else {}
        report = cluster.verify(*dumps, acknowledged=tuple(self._told.kinds), **more)
        figures.checked = dict(report.checked)
        figures.violations += [str(one) for one in report.violations]

    def _progress(self, now: float) -> str:
        try:
            counts = self._world.cluster.runtime.jobs.count_by_state()
            jobs = ", ".join(f"{n} {state.value}" for state, n in counts.items() if n)
        except Unavailable:
            jobs = "the database does not answer"
        last = self._undo[-1][1] if self._undo else "none"
        return f"{now:6.0f} s  {sum(self.figures.faults.values())} faults (now: {last})  jobs: {jobs}"
