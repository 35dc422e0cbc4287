"""Who overuses a share, when they hear of it, and whose memory is foreign."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.gpu_memory import (
    ForeignUse,
    ForeignWatch,
    GpuUser,
    Holding,
    MemoryPolicy,
    MemoryWatch,
    Shown,
    Told,
    Verdict,
)

POLICY = MemoryPolicy(tolerance_mib=100, patience_seconds=0.5)
MINE = GpuUser(10, 4000, "me", "r1")
STRANGER = GpuUser(77, 3000, "alice", None)


def verdicts(watch: MemoryWatch, *readings: tuple[float, int], share: int | None = 1000) -> list[list[Verdict]]:
    return [[told.verdict for told in watch.look(now, [Holding("job", used, share)])] for now, used in readings]


def test_an_over_user_is_warned_at_the_first_reading_and_ended_at_the_next() -> None:
    watch = MemoryWatch(POLICY)
    assert verdicts(watch, (1, 900), (2, 1200), (3, 1200), (4, 1200)) == [[], [Verdict.WARN], [Verdict.END], []]
    assert MemoryWatch(POLICY).look(1, [Holding("a", 1101, 1000)]) == [Told("a", Verdict.WARN, 1101, 1000)]


def test_the_tolerance_is_let_pass() -> None:
    assert verdicts(MemoryWatch(POLICY), (1, 1100), (2, 1100), (3, 1101)) == [[], [], [Verdict.WARN]]


def test_who_comes_back_below_is_forgiven_and_warned_again() -> None:
    readings = ((1, 1200), (2, 1000), (3, 1200), (4, 1200))
    assert verdicts(MemoryWatch(POLICY), *readings) == [[Verdict.WARN], [], [Verdict.WARN], [Verdict.END]]


def test_readings_close_together_count_as_one() -> None:
    """A reading that was asked for in between gives nobody less time."""
    readings = ((1, 1200), (1.1, 1200), (1.2, 1200), (1.5, 1200))
    assert verdicts(MemoryWatch(POLICY), *readings) == [[Verdict.WARN], [], [], [Verdict.END]]


def test_who_has_its_gpus_to_itself_is_never_told_anything() -> None:
    assert verdicts(MemoryWatch(POLICY), (1, 80_000), (2, 80_000), share=None) == [[], []]


def test_the_next_attempt_begins_with_a_clean_slate() -> None:
    watch = MemoryWatch(POLICY)
    verdicts(watch, (1, 1200))
    watch.look(2, [])
    assert verdicts(watch, (3, 1200)) == [[Verdict.WARN]]


@given(st.lists(st.lists(st.integers(0, 3000), min_size=3, max_size=3), max_size=12))
def test_only_who_is_over_in_two_readings_on_end_is_ended(readings: list[list[int]]) -> None:
    """Whatever the neighbours do."""
    watch = MemoryWatch(POLICY)
    over_before: set[str] = set()
    for now, reading in enumerate(readings):
        used = {f"job{number}": mib for number, mib in enumerate(reading)}
        told = watch.look(now, [Holding(key, mib, 1000) for key, mib in used.items()])
        over = {key for key, mib in used.items() if mib > 1100}
        assert {one.key for one in told if one.verdict is Verdict.WARN} == over - over_before
        assert {one.key for one in told if one.verdict is Verdict.END} <= over & over_before
        over_before = over


def foreign(watch: ForeignWatch, *cards: Shown) -> list[ForeignUse]:
    return [watch.look({"G": card})["G"] for card in cards]


def test_a_process_that_no_lease_explains_counts_at_once_and_is_named() -> None:
    (use,) = foreign(ForeignWatch(512), Shown(7000, (MINE, STRANGER), ours=True))
    assert use == ForeignUse(3000, ("pid 77 (alice): 3000 MiB",), clean=False)


def test_a_little_foreign_use_counts_and_keeps_nobody_away() -> None:
    (use,) = foreign(ForeignWatch(512), Shown(300, (GpuUser(5, 300, None, None),), ours=False))
    assert use == ForeignUse(300, ("pid 5: 300 MiB",), clean=True)


def test_what_holders_without_a_job_were_lent_is_explained() -> None:
    watch = ForeignWatch(512)
    lent, more = foreign(watch, Shown(3000, (STRANGER,), True, 4000), Shown(3000, (STRANGER,), True, 2000))
    assert lent == ForeignUse()
    assert (more.used_mib, more.clean) == (1000, False)


def test_memory_that_no_process_explains_counts_from_the_second_reading_and_is_no_strangers() -> None:
    """A GPU with it is not kept from whole leases here: the hand-off judges what earlier jobs left."""
    first, second = foreign(ForeignWatch(512), *[Shown(9000, (), ours=False)] * 2)
    assert first == ForeignUse()
    assert second == ForeignUse(9000, ("9000 MiB by no process that can be seen",), clean=True)


def test_memory_that_no_process_explains_is_not_held_against_a_gpu_in_use() -> None:
    assert foreign(ForeignWatch(512), *[Shown(9000, (), ours=True)] * 3) == [ForeignUse()] * 3


def test_of_many_only_the_largest_are_named() -> None:
    users = tuple(GpuUser(pid, pid, None, None) for pid in range(1, 8))
    (use,) = foreign(ForeignWatch(512), Shown(28, users, ours=True))
    assert use.used_mib == 28
    assert use.by == ("pid 7: 7 MiB", "pid 6: 6 MiB", "pid 5: 5 MiB", "pid 4: 4 MiB", "3 more")
