"""The health of GPUs: what takes one out, and what brings it back."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.cluster import GpuHealth, GpuOrder, GpuSample, GpuStanding
from orchestrator.gpus.health import HealthKeeper, HealthPolicy
from orchestrator.gpus.simulated import make_gpus

ONE, TWO = make_gpus(2, owner="test")
UUID = ONE.gpu.uuid
POLICY = HealthPolicy(recover_seconds=30, quarantine_seconds=60)


class World:
    """A keeper with a clock."""

    def __init__(self) -> None:
        self.keeper, self.now = HealthKeeper(POLICY), 0.0
        self.failure: str | None = None  # why the GPU fails its self-tests

    def read(self, *samples: GpuSample, after: float = 1.0, leased: frozenset[str] = frozenset()) -> GpuHealth:
        """Take in a reading and return the first GPU's health; its neighbour is never touched by it.

        A self-test that is asked for ends before the next reading, which comes at once.
        """
        self.now += after
        found = self.judge(*samples, leased=leased)
        for uuid in self.keeper.take_tests():
            assert uuid == UUID
            self.keeper.on_tested(uuid, self.failure, self.now)
            found = self.judge(*samples, leased=leased)
        return found

    def judge(self, *samples: GpuSample, leased: frozenset[str] = frozenset()) -> GpuHealth:
        """Take in a reading and return the first GPU's health."""
        found = {sample.gpu.uuid: sample.health for sample in self.keeper.judge([*samples, TWO], leased, self.now)}
        assert found[TWO.gpu.uuid] is GpuHealth.HEALTHY
        return found.get(UUID, GpuHealth.LOST)


def xid(number: int, count: int) -> GpuSample:
    return replace(ONE, xid=number, xid_count=count)


def test_a_critical_xid_takes_one_gpu_out_and_it_comes_back_by_itself() -> None:
    """F34; the same count again is the same error."""
    world = World()
    assert world.read(ONE) is GpuHealth.HEALTHY
    assert world.read(xid(79, 1)) is GpuHealth.QUARANTINED
    assert world.keeper.failed() == {UUID: "XID 79"}
    assert world.read(xid(79, 1), after=58) is GpuHealth.QUARANTINED
    assert world.read(xid(79, 1), after=5) is GpuHealth.HEALTHY
    assert world.keeper.failed() == {}


def test_three_strikes_keep_it_out_until_a_person_lets_it_in() -> None:
    world = World()
    world.read(ONE)
    for count in (1, 2, 3):
        assert world.read(xid(79, count), after=1000) is GpuHealth.QUARANTINED
    assert world.read(xid(79, 3), after=80_000) is GpuHealth.QUARANTINED

    world.keeper.obey({UUID: GpuOrder(releases=1)}, world.now)
    assert world.read(xid(79, 3)) is GpuHealth.HEALTHY
    assert world.keeper.standings()[UUID].strikes == 3
    world.keeper.obey({UUID: GpuOrder(releases=2, resets=1)}, world.now)
    assert world.keeper.standings()[UUID].strikes == 0


def test_a_jobs_own_error_is_no_strike() -> None:
    """XID 13 and 31 are a program's, 43 and 45 follow from its end."""
    world = World()
    world.read(ONE)
    for count, number in enumerate((13, 31, 43, 45), start=1):
        assert world.read(xid(number, count)) is GpuHealth.HEALTHY


def test_memory_that_does_not_come_back_keeps_it_in_quarantine() -> None:
    world = World()
    world.read(ONE)
    world.keeper.strike(UUID, "4000 MiB in use", world.now)
    full = replace(ONE, used_mib=4000)
    assert world.read(full, after=100) is GpuHealth.QUARANTINED
    assert world.keeper.failed() == {}  # what runs beside it may go on
    assert world.read(ONE) is GpuHealth.HEALTHY


def test_a_quarantine_that_is_over_ends_with_a_self_test() -> None:
    """It is asked for once, when the GPU is good, clean and nobody's; and told while it lasts."""
    world = World()
    world.judge(ONE)
    world.keeper.strike(UUID, "test", world.now)
    world.now = 100
    for unfit, leased in (
        (replace(ONE, used_mib=4000), ()),
        (replace(ONE, health=GpuHealth.SUSPECT), ()),
        (ONE, (UUID,)),
    ):
        assert world.judge(unfit, leased=frozenset(leased)) is GpuHealth.QUARANTINED
        assert world.keeper.take_tests() == ()
    assert world.judge(ONE) is GpuHealth.QUARANTINED
    assert world.keeper.standings()[UUID].reason == "test; it is being tested"
    assert [world.keeper.take_tests() for _ in range(2)] == [(UUID,), ()]
    assert world.judge(ONE) is GpuHealth.QUARANTINED

    world.keeper.on_tested(UUID, None, world.now)
    assert world.judge(replace(ONE, used_mib=4000)) is GpuHealth.QUARANTINED, "what the test used is not yet gone"
    assert world.judge(ONE) is GpuHealth.HEALTHY
    assert world.keeper.standings()[UUID].reason is None
    assert world.keeper.standings()[UUID].strikes == 1


def test_a_failed_self_test_is_a_strike() -> None:
    """The third keeps it out, also if it would pass by then."""
    world = World()
    world.read(ONE)
    world.keeper.strike(UUID, "test", world.now)
    world.failure = "CUDA error 719"
    for strikes in (2, 3):
        assert world.read(ONE, after=1000) is GpuHealth.QUARANTINED
        standing = world.keeper.standings()[UUID]
        assert (standing.strikes, standing.reason) == (strikes, "it failed its self-test: CUDA error 719")
    world.failure = None
    assert world.read(ONE, after=10_000) is GpuHealth.QUARANTINED
    world.keeper.obey({UUID: GpuOrder(releases=1)}, world.now)
    assert world.read(ONE) is GpuHealth.HEALTHY


def test_a_self_test_says_nothing_of_what_happened_since_it_was_asked_for() -> None:
    world = World()
    world.judge(ONE)
    world.keeper.on_tested(UUID, "nobody asked", world.now)
    assert world.judge(ONE) is GpuHealth.HEALTHY
    world.keeper.strike(UUID, "test", world.now)
    world.now = 100
    world.judge(ONE)
    world.keeper.take_tests()
    world.judge(xid(79, 1))
    world.keeper.on_tested(UUID, None, world.now)
    world.now += 100
    assert world.judge(xid(79, 1)) is GpuHealth.QUARANTINED, "the next quarantine ends with a test of its own"


def test_without_self_tests_a_good_and_clean_reading_decides() -> None:
    keeper = HealthKeeper(replace(POLICY, self_test=False))
    keeper.judge([ONE], frozenset(), 0)
    keeper.strike(UUID, "test", 0)
    (sample,) = keeper.judge([ONE], frozenset(), 100)
    assert (sample.health, keeper.take_tests()) == (GpuHealth.HEALTHY, ())


def warnings(world: World, *readings: tuple[float, GpuSample]) -> list[str | None]:
    """Return what the first GPU is warned of after each reading; it is leased all the while."""
    told = []
    for after, sample in readings:
        assert world.read(sample, after=after) is GpuHealth.HEALTHY
        told.append(world.keeper.standings()[UUID].warning)
    assert world.keeper.failed() == {}
    return told


def test_a_gpu_that_is_slowed_down_for_a_while_is_warned_of_and_leased_all_the_same() -> None:
    """A moment of heat is none; the warning ends when there was none of it for as long as a doubt lasts."""
    heat, both = (replace(ONE, slowed_by=slowed_by) for slowed_by in (("heat",), ("heat", "power")))
    brief = [(1.0, heat), (5.0, ONE), (31.0, heat)]
    long = [(9.0, heat), (2.0, heat), (5.0, ONE), (1.0, heat), (10.0, both), (11.0, both), (29.0, ONE), (2.0, ONE)]
    hot, worse = "slowed down by heat", "slowed down by heat and power"

    assert warnings(World(), *brief, *long) == [None] * 4 + [hot] * 3 + [None, worse, worse, None]


def test_many_memory_errors_that_were_corrected_in_a_day_are_warned_of() -> None:
    def at(count: int | None) -> GpuSample:
        return replace(ONE, ecc_corrected=count)

    day = ((1, at(50)), (10, at(1050)), (10, at(1051)), (10, at(None)), (10, at(3)), (86_400, at(2000)))
    told = warnings(World(), *day)
    assert told == [None, None, "corrected more than 1000 memory errors within a day", None, None, None]


def test_an_error_that_memory_could_not_correct_makes_it_suspect_and_ends_nothing() -> None:
    """The same count again is the same error, and what there was before this worker came is none."""
    world = World()
    bad = replace(ONE, ecc_uncorrected=5)
    assert world.read(replace(ONE, ecc_uncorrected=3)) is GpuHealth.HEALTHY
    assert world.read(bad) is GpuHealth.SUSPECT
    assert world.keeper.standings()[UUID].reason == "2 memory errors that it could not correct"
    assert world.keeper.failed() == {}
    assert [world.read(bad, after=seconds) for seconds in (1, 29, 2)] == [GpuHealth.SUSPECT] * 2 + [GpuHealth.HEALTHY]
    assert world.read(replace(ONE, ecc_uncorrected=0)) is GpuHealth.HEALTHY, "its driver was loaded anew"


def test_one_that_is_gone_is_lost_and_suspect_when_it_comes_back() -> None:
    world = World()
    world.read(ONE)
    assert world.read() is GpuHealth.LOST
    assert UUID in world.keeper.failed()
    assert world.read(ONE) is GpuHealth.SUSPECT
    assert world.read(ONE, after=29) is GpuHealth.SUSPECT
    assert world.read(ONE, after=2) is GpuHealth.HEALTHY


def test_an_unsure_reading_starts_the_doubt_anew() -> None:
    world = World()
    unsure = replace(ONE, health=GpuHealth.SUSPECT)
    assert world.read(unsure) is GpuHealth.SUSPECT
    assert world.read(ONE, after=20) is GpuHealth.SUSPECT
    assert world.read(unsure, after=20) is GpuHealth.SUSPECT
    assert world.read(ONE, after=20) is GpuHealth.SUSPECT
    assert world.read(ONE, after=31) is GpuHealth.HEALTHY


def test_an_operators_quarantine_holds_until_the_operator_ends_it() -> None:
    world = World()
    world.read(ONE)
    world.keeper.obey({UUID: GpuOrder(held=True)}, world.now)
    assert world.read(ONE, after=100_000) is GpuHealth.QUARANTINED
    world.keeper.obey({UUID: GpuOrder(releases=1)}, world.now)
    assert world.read(ONE) is GpuHealth.HEALTHY


def test_a_restart_of_the_worker_forgets_nothing() -> None:
    world = World()
    standing = GpuStanding(GpuHealth.QUARANTINED, 3, "XID 79", GpuOrder(held=False, releases=4))
    world.keeper.recall({UUID: standing}, 0.0)
    world.keeper.obey({UUID: GpuOrder(releases=4)}, 0.0)  # an old order is not a new one

    assert world.read(ONE, after=100_000) is GpuHealth.QUARANTINED
    assert world.keeper.standings()[UUID] == standing

    world.keeper.recall({UUID: replace(standing, reason="XID 79; it is being tested")}, world.now)
    assert world.keeper.standings()[UUID].reason == "XID 79"


_moves = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.sampled_from(list(GpuHealth))),
        st.tuples(st.just("xid"), st.sampled_from([13, 79])),
        st.tuples(st.just("strike"), st.none()),
        st.tuples(st.just("gone"), st.none()),
    ),
    max_size=20,
)


@given(_moves)
def test_whatever_happened_a_release_and_good_readings_bring_it_back(moves: list[tuple[str, object]]) -> None:
    """And what the driver calls lost or in need of a reset is never healthy."""
    world, count = World(), 0
    for kind, value in moves:
        if kind == "strike":
            world.keeper.strike(UUID, "test", world.now)
        elif kind == "gone":
            world.read()
        else:
            count += kind == "xid"
            health = value if isinstance(value, GpuHealth) else GpuHealth.HEALTHY
            number = value if isinstance(value, int) else None
            judged = world.read(replace(ONE, health=health, xid=number, xid_count=count))
            assert health is GpuHealth.HEALTHY or judged is not GpuHealth.HEALTHY
    world.read(replace(ONE, xid_count=count))
    world.keeper.obey({UUID: GpuOrder(releases=1, resets=1)}, world.now)
    world.read(replace(ONE, xid_count=count), after=31)

    assert world.read(replace(ONE, xid_count=count), after=31) is GpuHealth.HEALTHY
