"""Which idle runners leave their pools because jobs wait for their GPUs: those whose loss costs least, where it helps.

A job that nothing else will serve has runners leave on one host: a smallest set of them without which the job fits
there, counting everything that decides where it can go. Of several sets, the one that is the cheapest to load again:
the seconds of a load times the jobs per second that the runner has, as models are weighed that make room in one
runner's cache (``evictions``).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self, TypeAlias

from orchestrator.domain.job import Resources
from orchestrator.domain.pool import Pool, PoolRunner, PoolStanding
from orchestrator.domain.wants import Wants
from orchestrator.scheduling.evictions import Hits
from orchestrator.scheduling.hosts import Host
from orchestrator.scheduling.models import Models
from orchestrator.scheduling.plan import Plan, WaitReason, keeper
from orchestrator.scheduling.pools import USUAL_LOAD, Decision, Demand, reconcile, spares
from orchestrator.scheduling.snapshot import AdmittedView, Candidate, GpuView, HostView, Snapshot

_NO_WANTS: Final = Wants()
_WAITS_FOR_GPUS: Final = frozenset({WaitReason.GPUS_BUSY, WaitReason.BEHIND})
_Cost: TypeAlias = tuple[float, datetime, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Uses:
    """How often a runner was used, as far as it was watched."""

    jobs_done: int
    hits: Hits


@dataclass(frozen=True, slots=True)
class Pressing:
    """Jobs that a pass left waiting for GPUs, in the order in which it looked at them, and what it left them in."""

    snapshot: Snapshot
    jobs: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class _Holding:
    """What a runner's lease has of a host."""

    pool: str
    lease_id: int
    node: str
    gpus: tuple[str, ...]
    memory_mib: int | None  # of its GPU; None: all of it
    cpus: int
    host_memory_mib: int
    used_at: datetime
    score: float = 0.0  # what the runner's loss costs

    @property
    def cost(self) -> _Cost:
        """Of runners whose loss costs as much, the least recently used one goes first."""
        return self.score, self.used_at, (self.lease_id,)


def pressing(snapshot: Snapshot, made: Plan) -> Pressing | None:
    """Return the jobs without a model that a pass left waiting for GPUs; None if there are none."""
    known = {candidate.seq: candidate for candidate in snapshot.candidates}
    left = [known[refusal.seq] for refusal in made.refusals if refusal.reason in _WAITS_FOR_GPUS]
    jobs = tuple(one for one in left if one.resources.gpus and (one.resources.wants or _NO_WANTS).model is None)
    if not jobs:
        return None
    placed = ((known[admission.seq], admission.node) for admission in made.admissions)
    admitted = tuple(AdmittedView(one.seq, one.queue, one.resources, node) for one, node in placed)
    return Pressing(replace(snapshot, admitted=(*snapshot.admitted, *admitted)), jobs)


def uses_of(runner: PoolRunner, before: Uses | None, now: datetime) -> Uses:
    """Return how often a runner was used; seen for the first time, its jobs are taken to have come evenly."""
    if before is None:
        spread = Hits.spread(runner.jobs_done, runner.ready_at.timestamp(), runner.used_at.timestamp())
        return Uses(runner.jobs_done, spread)
    new = runner.jobs_done - before.jobs_done
    return Uses(runner.jobs_done, before.hits.with_use(now.timestamp(), new)) if new > 0 else before


def reconcile_all(
    standings: Sequence[PoolStanding],
    demands: Sequence[Demand],
    waiting: Pressing | None,
    uses: Mapping[int, Uses],
    now: datetime,
    *,
    idle_seconds: float,
) -> list[Decision]:
    """Decide what each pool needs, and who leaves because jobs wait for GPUs.

    Args:
        standings: Every pool.
        demands: What waits for each of them.
        waiting: Who waits for GPUs; None if nobody does.
        uses: How often each runner was used, by lease.
        now: The instant of the standings.
        idle_seconds: As for ``reconcile``.
    """
    alone = [
        reconcile(standing, demand, now, idle_seconds=idle_seconds)
        for standing, demand in zip(standings, demands, strict=True)
    ]
    spared = [
        spares(standing, decision, demand, now, idle_seconds=idle_seconds)
        for standing, decision, demand in zip(standings, alone, demands, strict=True)
    ]
    if waiting is None or not any(one.count and one.runners for one in spared):
        return alone
    pressure = _Pressure(waiting.snapshot)
    for standing, decision, spare in zip(standings, alone, spared, strict=True):
        pressure.free(_holding(standing.pool, runner, 0.0) for runner in _leaving(standing, decision))
        costs = [(runner, _score(standing.pool, uses.get(runner.lease_id), now)) for runner in spare.runners]
        pressure.offer(standing.pool.name, spare.count, [_holding(standing.pool, *cost) for cost in costs])
    pressure.settle(waiting.snapshot)
    given = pressure.serve_all(waiting.jobs)
    return [
        reconcile(standing, replace(demand, give_up=given), now, idle_seconds=idle_seconds)
        for standing, demand in zip(standings, demands, strict=True)
    ]


def _leaving(standing: PoolStanding, decision: Decision) -> list[PoolRunner]:
    """Return the runners whose GPUs come free in a moment; one that has a job to end first may take hours."""
    told = {lease_id for lease_id, _leave in decision.leave}
    gone = (
        one for one in standing.runners if one.leave is not None or one.lease_id in told or one.ended_at is not None
    )
    return [one for one in gone if one.ended_at is not None or not one.running]


def _score(pool: Pool, uses: Uses | None, now: datetime) -> float:
    rate = uses.hits.rate_at(now.timestamp()) if uses is not None else 0.0
    return (pool.loaded_in_seconds or USUAL_LOAD) * rate


def _holding(pool: Pool, runner: PoolRunner, score: float) -> _Holding:
    wants = pool.spec.resources.wants or _NO_WANTS
    used_at = max(runner.used_at, runner.ready_at)
    room = (runner.gpus, runner.memory_mib, wants.cpus, wants.host_memory_mib)
    return _Holding(pool.name, runner.lease_id, runner.node, *room, used_at, score)


class _Room:
    """One host, with what is free there and what will be."""

    __slots__ = ("_host", "_taken", "_view")

    def __init__(self, view: HostView, taken: Iterable[Resources] = ()) -> None:
        self._view, self._host = view, Host(view, 0)
        self._taken = [option for option in taken if self._host.take(option) is not None]

    def serves(self, queue: str) -> bool:
        return queue in self._view.queues

    def could_ever(self, resources: Resources) -> bool:
        return self._host.could_ever(resources)

    def take(self, resources: Resources) -> bool:
        """Use up what a job needs; tell whether it fits."""
        for option in resources.options:
            if self._host.take(option) is not None:
                self._taken.append(option)
                return True
        return False

    def without(self, holdings: Sequence[_Holding]) -> Self:
        """Return the host as it is when these have left."""
        return type(self)(_freed(self._view, holdings), self._taken)


class _Pressure:
    def __init__(self, snapshot: Snapshot) -> None:
        views = sorted((view for view in snapshot.hosts if view.accepts), key=lambda view: view.node)
        self._rooms = {view.node: _Room(view) for view in views}
        self._left: Counter[str] = Counter()  # by pool
        self._spares: defaultdict[str, list[_Holding]] = defaultdict(list)  # by host
        self._closed: set[tuple[str, str]] = set()  # queue and host: GPUs are kept there for the queue's first job
        self._heads: set[str] = set()
        self._misses: set[tuple[str, Resources]] = set()
        self._given: set[int] = set()

    def free(self, holdings: Iterable[_Holding]) -> None:
        """Count on what runners have that leave anyway."""
        for one in holdings:
            if one.node in self._rooms:
                self._rooms[one.node] = self._rooms[one.node].without([one])

    def offer(self, pool: str, count: int, holdings: Iterable[_Holding]) -> None:
        """Take note of the runners of a pool of which so many could leave."""
        self._left[pool] = count
        for one in holdings:
            self._spares[one.node].append(one)

    def settle(self, snapshot: Snapshot) -> None:
        """Count the jobs that are on their way, but for those that go to runners of pools."""
        models = Models(snapshot.models, snapshot.admitted, self._rooms)
        for jobs in sorted(snapshot.admitted, key=lambda jobs: jobs.seq):
            if models.settles(jobs):
                continue
            rooms = [room for node, room in self._open(jobs.queue) if jobs.node in (None, node)]
            for _ in range(jobs.count):
                if not any(room.take(jobs.resources) for room in rooms):
                    break

    def serve_all(self, jobs: Iterable[Candidate]) -> frozenset[int]:
        """Return the leases of the runners that leave so that these jobs start."""
        for holdings in self._spares.values():
            holdings.sort(key=lambda spare: spare.cost)
        for job in jobs:
            self._serve(job)
        return frozenset(self._given)

    def _serve(self, candidate: Candidate) -> None:
        """Have a job served by what comes free anyway, or else by runners that leave for it."""
        queue, resources = candidate.queue, candidate.resources
        if (queue, resources) in self._misses or any(room.take(resources) for _, room in self._open(queue)):
            return
        leaving = self._cheapest(queue, resources)
        if not leaving:
            self._misses.add((queue, resources))
            self._keep_for_head(candidate)
            return
        node = leaving[0].node
        self._rooms[node] = self._rooms[node].without(leaving)
        self._rooms[node].take(resources)
        self._spares[node] = [spare for spare in self._spares[node] if spare not in leaving]
        for spare in leaving:
            self._given.add(spare.lease_id)
            self._left[spare.pool] -= 1

    def _open(self, queue: str) -> list[tuple[str, _Room]]:
        serving = ((node, room) for node, room in self._rooms.items() if room.serves(queue))
        return [(node, room) for node, room in serving if (queue, node) not in self._closed]

    def _cheapest(self, queue: str, resources: Resources) -> list[_Holding]:
        """Return the runners of one host whose loss costs least of those that make room for a job; none if none do."""
        best: list[_Holding] = []
        ranked = [(self._spares[node][0].cost, node, room) for node, room in self._open(queue) if self._spares[node]]
        for least, node, room in sorted(ranked, key=lambda one: one[:2]):
            if best and _cost(best) <= least:
                break  # no set of a later host can cost less than its cheapest runner alone
            if room.could_ever(resources):
                found = self._smallest(room, self._spares[node], resources)
                best = min(filter(None, (best, found)), key=_cost, default=best)
        return best

    def _smallest(self, room: _Room, holdings: Sequence[_Holding], resources: Resources) -> list[_Holding]:
        """Return so few runners that the job would not fit with any one of them left, without the costliest ones."""
        left = [one for one in holdings if self._left[one.pool] > 0]
        while room.without(left).take(resources):
            chosen = list(left)
            for spare in reversed(left):
                fewer = [one for one in chosen if one is not spare]
                if room.without(fewer).take(resources):
                    chosen = fewer
            asked = Counter(spare.pool for spare in chosen)
            too_many = [spare for spare in chosen if asked[spare.pool] > self._left[spare.pool]]
            if not too_many:
                return chosen
            left.remove(too_many[-1])
        return []

    def _keep_for_head(self, candidate: Candidate) -> None:
        """Count on no GPU of the host that keeps its GPUs for the first job of a queue that nothing serves."""
        queue = candidate.queue
        if queue in self._heads:
            return
        self._heads.add(queue)
        names = [node for node, room in self._open(queue) if room.could_ever(candidate.resources)]
        if names:
            self._closed.add((queue, keeper(candidate.seq, names)))


def _cost(holdings: Sequence[_Holding]) -> _Cost:
    last = max(one.used_at for one in holdings)
    return sum(one.score for one in holdings), last, tuple(one.lease_id for one in holdings)


def _freed(view: HostView, holdings: Sequence[_Holding]) -> HostView:
    """Return a host as it is when these have left."""
    if not holdings:
        return view
    return replace(
        view,
        gpus=tuple(_gpu_freed(gpu, [one for one in holdings if gpu.uuid in one.gpus]) for gpu in view.gpus),
        cpus_taken=max(0, view.cpus_taken - sum(one.cpus for one in holdings)),
        memory_taken_mib=max(0, view.memory_taken_mib - sum(one.host_memory_mib for one in holdings)),
    )


def _gpu_freed(gpu: GpuView, holdings: Sequence[_Holding]) -> GpuView:
    if not holdings:
        return gpu
    shares = sum(one.memory_mib or 0 for one in holdings)
    is_exclusive = gpu.exclusive and all(one.memory_mib is not None for one in holdings)
    return replace(gpu, exclusive=is_exclusive, reserved_mib=max(0, gpu.reserved_mib - shares))
