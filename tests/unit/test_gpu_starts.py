"""Which GPUs failed starts are held against."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gpus.starts import IN_A_ROW, StartWatch

GPUS = ("A", "B", "C", "D")


def told(*starts: tuple[str, bool]) -> list[dict[str, str]]:
    """Return what is held against which GPU after each start, of runners on the GPUs named by letters."""
    watch = StartWatch()
    return [watch.note(tuple(gpus), started=started) for gpus, started in starts]


def test_a_gpu_on_which_nothing_starts_while_others_start_is_struck_once() -> None:
    bad, good = ("A", False), ("B", True)
    assert told(bad, good, bad, good, bad, bad) == [
        *[{}] * 4,
        {"A": "3 runners in a row did not start on it, while others started on B"},
        {},
    ]


def test_what_starts_now_and_then_is_not_the_gpu() -> None:
    """One that starts there begins the row anew."""
    assert not any(told(*[("A", False), ("B", True), ("A", False), ("A", True)] * 5))


def test_what_the_others_did_before_says_nothing() -> None:
    """An app that broke starts nowhere from then on, and those that run well were started before."""
    assert not any(told(("B", True), *[("A", False)] * 10))


def test_a_start_on_several_gpus_is_held_against_all_of_them() -> None:
    """A self-test tells them apart."""
    assert told(("AB", False), ("C", True), ("AB", False), ("AB", False))[-1].keys() == {"A", "B"}


def test_two_bad_gpus_among_many_are_found() -> None:
    bad = [("A", False), ("B", False)]
    found = told(*bad, ("C", True), ("D", True), ("E", True), *bad, *bad)
    assert found[-2].keys() | found[-1].keys() == {"A", "B"}


@given(st.lists(st.sampled_from(GPUS), max_size=60))
def test_an_app_that_fails_everywhere_is_no_gpus_fault(order: list[str]) -> None:
    assert not any(told(*[(gpu, False) for gpu in order]))


@given(st.lists(st.tuples(st.sampled_from(GPUS), st.booleans()), max_size=60))
def test_nothing_is_held_against_a_gpu_that_started_one_of_the_last(starts: list[tuple[str, bool]]) -> None:
    """Nor against one without another that did better."""
    for number, found in enumerate(told(*starts)):
        for uuid in found:
            own = [started for gpu, started in starts[: number + 1] if gpu == uuid]
            assert not any(own[-IN_A_ROW:])
            assert any(started for gpu, started in starts[:number] if gpu != uuid)
