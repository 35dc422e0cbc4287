"""Who of several pools' idle runners leaves because jobs wait for GPUs: the cheapest, where it helps, and no more."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.job import Resources
from orchestrator.domain.pool import Leave, Pool, PoolRunner, PoolStanding
from orchestrator.domain.wants import Wants
from orchestrator.scheduling.evictions import HIT_RATE_HALF_LIFE, Hits
from orchestrator.scheduling.plan import Policy, plan
from orchestrator.scheduling.pool_pressure import Uses, pressing, reconcile_all, uses_of
from orchestrator.scheduling.pools import Decision, Demand
from orchestrator.scheduling.snapshot import AdmittedView, Candidate, GpuView, HostView, QueueView, Snapshot
from tests.unit.scheduling.test_pools import IDLE, NOW, pool, runner

MIB = 1000
QUIET = NOW - timedelta(seconds=30)


class World:
    """Hosts of four GPUs each, pools with runners on them, and jobs that wait."""

    def __init__(self, nodes: str = "ab", *, models: Sequence[str] = ("A100",) * 4, **fields: Any) -> None:
        self.standings: list[PoolStanding] = []
        self.views = [
            HostView(
                node,
                True,
                tuple(GpuView(f"{node}{n}", n, model, MIB, 0, False, True) for n, model in enumerate(models)),
                frozenset({"gpu"}),
                1,
                0,
                0,
                **fields,
            )
            for node in nodes
        ]
        self.uses: dict[int, Uses] = {}

    def pool(self, name: str, *runners: PoolRunner, load: float | None = 10.0, **fields: Any) -> Pool:
        """Have a pool whose runners take what they say of their GPUs, and everything is taken that nobody names."""
        one = replace(
            pool(**{"least": 0, "most": 9, "wanted": len(runners)} | fields), name=name, loaded_in_seconds=load
        )
        self.standings.append(PoolStanding(one, runners))
        for each in runners:
            self.hold(each.gpus, each.memory_mib)
        return one

    def hold(self, gpus: Iterable[str], memory_mib: int | None = None) -> None:
        """Have somebody hold GPUs."""

        def held(gpu: GpuView) -> GpuView:
            if gpu.uuid not in gpus:
                return gpu
            return replace(gpu, exclusive=memory_mib is None, reserved_mib=gpu.reserved_mib + (memory_mib or 0))

        self.views = [replace(view, gpus=tuple(map(held, view.gpus))) for view in self.views]

    def hold_rest(self) -> None:
        """Have jobs hold every GPU that is free."""
        self.hold({gpu.uuid for view in self.views for gpu in view.gpus if not (gpu.exclusive or gpu.reserved_mib)})

    def decide(
        self, *asked: Resources, demand: Demand | None = None, admitted: tuple[AdmittedView, ...] = ()
    ) -> list[Decision]:
        """Decide for every pool after a pass over jobs that ask for this."""
        jobs = tuple(Candidate(seq, "gpu", "default", 5, one) for seq, one in enumerate(asked, 1))
        snapshot = Snapshot(tuple(self.views), admitted, jobs, (QueueView("gpu", False),))
        waiting = pressing(snapshot, plan(snapshot, NOW, Policy()))
        demands = [demand or Demand()] * len(self.standings)
        return reconcile_all(self.standings, demands, waiting, self.uses, NOW, idle_seconds=IDLE)

    def left(self, *asked: Resources, **more: Any) -> list[int]:
        """Return the leases of those who leave."""
        return sorted(lease_id for decision in self.decide(*asked, **more) for lease_id, _leave in decision.leave)


def on(lease_id: int, *gpus: str, **fields: Any) -> PoolRunner:
    """Return an idle runner on these GPUs of a host."""
    return replace(runner(lease_id, node=gpus[0][0], used_at=QUIET, gpus=gpus), **fields)


def busy(rate: float) -> Uses:
    """Return the uses of a runner with so many jobs per second."""
    return Uses(0, Hits(rate * HIT_RATE_HALF_LIFE.total_seconds(), NOW.timestamp()))


def test_one_waiting_job_takes_one_runner_of_all_pools_the_cheapest() -> None:
    """What its load takes times how often it is used; of those alike, the one that was used the longest ago."""
    world = World()
    world.pool("chat", on(1, "a0"), on(2, "b0"), load=10.0)
    world.pool("image", on(3, "a1"), on(4, "b1"), load=40.0)
    world.hold_rest()
    world.uses = {1: busy(2.0), 2: busy(1.0), 3: busy(0.1), 4: busy(0.5)}
    assert world.left(Resources(1)) == [3], "4 s of load a second; the others cost 20, 10 and 20"
    assert world.left(Resources(1), Resources(1)) == [2, 3]
    assert world.left(*[Resources(1)] * 9) == [1, 2, 3, 4]
    assert world.left() == []

    world.uses = {}
    long_ago = NOW - timedelta(seconds=300)
    chat, image = world.standings
    world.standings = [replace(chat, runners=(chat.runners[0], replace(chat.runners[1], used_at=long_ago))), image]
    assert world.left(Resources(1)) == [2]


def test_a_runner_whose_gpu_does_not_fit_the_job_stays() -> None:
    """However cheap it is: the GPU's type, its memory, the host's label and queue, and its CPUs decide."""
    world = World("a", models=("A100", "H100"), labels=(("zone", "x"),), cpus=8, cpus_taken=8)
    world.pool("chat", on(1, "a0"))
    world.pool("image", on(2, "a1"))
    world.hold_rest()
    world.uses = {1: busy(0.0), 2: busy(9.0)}
    assert world.left(Resources(1, wants=Wants(models=("H100",)))) == [2]
    assert world.left(Resources(1, wants=Wants(models=("A100",), labels=(("zone", "x"),)))) == [1]
    for never in (
        Wants(min_memory_mib=MIB + 1),
        Wants(labels=(("zone", "y"),)),
        Wants(cpus=1),
        Wants(mig_profile="1g"),
    ):
        assert world.left(Resources(1, wants=never)) == []
    world.views = [replace(view, queues=frozenset({"other"})) for view in world.views]
    assert world.left(Resources(1)) == []


def test_the_cpus_of_a_runner_come_free_with_it() -> None:
    world = World("a", cpus=8, cpus_taken=8)
    one = world.pool("chat", on(1, "a0"))
    world.hold_rest()
    resources = replace(one.spec.resources, wants=Wants(cpus=4))
    world.standings = [PoolStanding(replace(one, spec=replace(one.spec, resources=resources)), (on(1, "a0"),))]
    assert world.left(Resources(1, wants=Wants(cpus=4))) == [1]
    assert world.left(Resources(1, wants=Wants(cpus=5))) == []


def test_who_is_pinned_busy_or_needed_by_the_pool_stays() -> None:
    world = World("a")
    world.pool("pinned", on(1, "a0"), pinned=True)
    world.pool("busy", on(2, "a1", running=1))
    world.pool("least", on(3, "a2"), least=1)
    world.pool("used", on(4, "a3", used_at=NOW))
    assert world.left(*[Resources(1)] * 9) == []
    spare = World("a")
    spare.pool("chat", on(1, "a0"), on(2, "a1"), on(3, "a2"), least=2)
    spare.hold_rest()
    assert spare.left(*[Resources(1)] * 9) == [1]
    assert spare.left(Resources(2)) == [], "one alone would not do"


def test_a_pool_that_has_given_all_that_it_can_leaves_the_rest_to_others() -> None:
    world = World("a")
    world.pool("chat", on(1, "a0"), on(2, "a1"), least=1)
    world.pool("image", on(3, "a2"))
    world.hold_rest()
    world.uses = {3: busy(9.0)}
    assert world.left(Resources(1)) == [1]
    assert world.left(*[Resources(1)] * 2) == [1, 3]
    assert world.left(Resources(2)) == [1, 3]


def test_a_job_for_several_gpus_gets_them_on_one_host_or_has_nobody_leave() -> None:
    world = World("ab")
    world.pool("chat", on(1, "a0"), on(2, "b0"), on(3, "b1"))
    world.pool("big", on(4, "a1", "a2"))
    world.hold_rest()
    world.uses = {1: busy(0.0), 2: busy(1.0), 3: busy(1.0), 4: busy(1.5)}
    assert world.left(Resources(2)) == [4], "1.5 is less than 1 + 1, and the one that is cheapest of all stays"
    assert world.left(Resources(3)) == [1, 4]
    assert world.left(Resources(4)) == []
    world.uses[4] = busy(2.5)
    assert world.left(Resources(2)) == [2, 3], "on the other host, though the cheapest of all is here"
    world.views = [
        replace(world.views[0], gpus=tuple(replace(gpu, exclusive=False) for gpu in world.views[0].gpus[3:]))
    ]
    assert world.left(Resources(1)) == [], "one is free"


def test_a_share_has_those_leave_that_make_room_on_one_gpu() -> None:
    world = World("a", models=("A100", "A100"))
    world.pool("chat", on(1, "a0", memory_mib=300), on(2, "a0", memory_mib=300), on(3, "a1", memory_mib=500))
    world.hold(("a0", "a1"), 400)
    world.uses = {1: busy(1.0), 2: busy(2.0), 3: busy(4.0)}
    assert world.left(Resources(1, 200)) == [1]
    assert world.left(Resources(1, 550)) == [1, 2]
    assert world.left(Resources(1, 600)) == [1, 2], "100 are free on the other one, and 500 its runner has"
    assert world.left(Resources(1, 601)) == []
    assert world.left(Resources(1)) == [], "others have shares there"


def test_a_whole_gpu_is_made_free_of_all_the_shares_on_it() -> None:
    world = World("a", models=("A100", "A100"))
    world.pool("chat", on(1, "a0", memory_mib=300), on(2, "a0", memory_mib=300), on(3, "a1", memory_mib=500))
    world.uses = {1: busy(1.0), 2: busy(2.0), 3: busy(4.0)}
    assert world.left(Resources(1)) == [1, 2]


def test_what_comes_free_anyway_is_counted_on() -> None:
    """Who was told to leave a moment ago, or leaves for being idle, serves a job; whoever has a job to end does not."""
    world = World("a")
    world.pool("chat", on(1, "a0", leave=Leave.DRAIN), on(2, "a1"), on(3, "a2", used_at=NOW - timedelta(days=1)))
    world.hold_rest()
    assert world.left() == [3]
    assert world.left(*[Resources(1)] * 2) == [3]
    assert world.left(*[Resources(1)] * 3) == [2, 3]
    (standing,) = world.standings
    told, *others = standing.runners
    world.standings = [replace(standing, runners=(replace(told, running=1), *others))]
    assert world.left(*[Resources(1)] * 2) == [2, 3]


def test_a_gpu_that_a_job_on_its_way_will_take_is_not_counted_on() -> None:
    world = World("a", models=("A100", "A100"))
    world.pool("chat", on(1, "a0"))
    assert world.left(Resources(1)) == []
    for node in ("a", None):
        assert world.left(Resources(1), admitted=(AdmittedView(99, "gpu", Resources(1), node),)) == [1]
    assert world.left(Resources(1), demand=Demand(jobs=1)) == []


def test_nobody_leaves_a_host_for_whom_its_gpus_are_not() -> None:
    """They are kept for the first job of the queue, which needs more than can come free now."""
    world = World("a")
    world.pool("chat", on(1, "a0"))
    world.hold(("a1", "a2"))
    assert world.left(Resources(2), Resources(1)) == [1]
    assert world.left(Resources(1), Resources(2)) == []
    world.hold_rest()
    assert world.left(Resources(1)) == [1]
    assert world.left(Resources(4), Resources(1)) == []


def test_uses_count_by_when_they_were_and_are_watched_from_then_on() -> None:
    """Of a runner seen for the first time all jobs are taken to have come evenly, from its start to its last use."""
    steady = runner(1, ready_at=NOW - timedelta(hours=10), used_at=NOW, jobs_done=36_000)
    first = uses_of(steady, None, NOW)
    assert abs(first.hits.rate_at(NOW.timestamp()) - 1.0) < 0.01
    stale = uses_of(replace(steady, used_at=NOW - timedelta(hours=9)), None, NOW)
    assert stale.hits.rate_at(NOW.timestamp()) < 0.001
    later = NOW + HIT_RATE_HALF_LIFE
    assert uses_of(steady, first, later) is first
    assert abs(first.hits.rate_at(later.timestamp()) - 0.5) < 0.01
    watched = uses_of(replace(steady, jobs_done=36_300), first, later)
    assert watched.hits.count_at(later.timestamp()) == first.hits.count_at(later.timestamp()) + 300


@st.composite
def pressed(draw: st.DrawFn) -> tuple[World, list[Resources]]:
    """Draw hosts with runners of two pools and with others' leases, and jobs that wait."""
    world = World(
        "abc"[: draw(st.integers(1, 3))],
        models=draw(st.lists(st.sampled_from(("A100", "H100")), min_size=1, max_size=3)),
    )
    runners: dict[str, list[PoolRunner]] = {"chat": [], "image": []}
    for number, gpu in enumerate([gpu for view in world.views for gpu in view.gpus], 1):
        match draw(st.sampled_from(("chat", "image", "share", "job", "free"))):
            case "job":
                world.hold((gpu.uuid,))
            case "share":
                runners["chat"].append(on(number, gpu.uuid, memory_mib=draw(st.sampled_from((300, MIB)))))
            case "free":
                pass
            case name:
                runners[name].append(on(number, gpu.uuid, running=draw(st.sampled_from((0, 0, 0, 1)))))
        world.uses[number] = busy(draw(st.sampled_from((0.0, 1.0, 2.0))))
    for name, found in runners.items():
        least = draw(st.integers(0, 2))
        world.pool(name, *found, least=least, wanted=max(least, len(found)), load=draw(st.sampled_from((5.0, 10.0))))
    wants = st.sampled_from((None, Wants(models=("H100",))))
    asked = st.one_of(
        st.builds(Resources, st.integers(1, 3), st.none(), wants), st.builds(Resources, st.just(1), st.just(400), wants)
    )
    return world, draw(st.lists(asked, min_size=1, max_size=5))


@settings(max_examples=500)
@given(pressed())
def test_who_leaves_lets_waiting_jobs_start_and_nobody_leaves_for_nothing(drawn: tuple[World, list[Resources]]) -> None:
    """Once they have left, jobs start that waited; a single one that waited does not start with any of them kept."""
    world, asked = drawn
    jobs = tuple(Candidate(seq, "gpu", "default", 5, one) for seq, one in enumerate(asked, 1))
    before = Snapshot(tuple(world.views), (), jobs, (QueueView("gpu", False),))
    admitted = plan(before, NOW, Policy()).admissions
    on_their_way = tuple(AdmittedView(one.seq, "gpu", asked[one.seq - 1], one.node) for one in admitted)
    waiting = tuple(job for job in jobs if job.seq not in {one.seq for one in admitted})
    runners = {one.lease_id: one for standing in world.standings for one in standing.runners}

    def started(gone: set[int]) -> int:
        held = World("".join(view.node for view in world.views), models=[gpu.model for gpu in world.views[0].gpus])
        pooled = {gpu for one in runners.values() for gpu in one.gpus}
        held.hold({gpu.uuid for view in world.views for gpu in view.gpus if gpu.exclusive} - pooled)
        for one in runners.values():
            if one.lease_id not in gone:
                held.hold(one.gpus, one.memory_mib)
        after = Snapshot(tuple(held.views), on_their_way, waiting, (QueueView("gpu", False),))
        return len(plan(after, NOW, Policy()).admissions)

    left = set(world.left(*asked))
    assert not any(runners[lease_id].running for lease_id in left)
    for standing in world.standings:
        stay = [one for one in standing.runners if one.lease_id not in left]
        assert len(stay) >= min(standing.pool.spec.least, len(standing.runners))
    assert not left or started(left) > 0
    if len(waiting) == 1:
        assert all(started(left - {lease_id}) == 0 for lease_id in left)
