"""Leadership: who may sweep, until when, and what ends a term."""

import os
import socket
from collections.abc import Callable

import pytest

from orchestrator.errors import NotLeading, StoreUnavailable
from orchestrator.leader_ports import Term
from orchestrator.services.lead import MARGIN, STANDBY_SECONDS, Leader, Tenure, Timetable, holder_name, host_and_pid
from orchestrator.services.sweeps import Sweep, Sweeps
from orchestrator.testing.fakes import MemoryWorld, memory_world
from tests.support.waiting import wait_for


@pytest.fixture
def world() -> MemoryWorld:
    return memory_world(leader_ttl=9)


def leader(world: MemoryWorld, name: str = "one") -> Leader:
    return Leader(world.runtime, name)


def run_for(world: MemoryWorld, seconds: float, *leaders: Leader) -> None:
    """Let the leaders take turns, a tenth of a second at a time."""
    for _ in range(round(seconds * 10)):
        world.clock.advance(0.1)
        for candidate in leaders:
            candidate.step()


def failing(error: Exception) -> Callable[[int], int]:
    def run(epoch: int) -> int:
        raise error

    return run


class OneSweep(Sweeps):
    """Sweeps whose table is what a test says."""

    def __init__(self, world: MemoryWorld, *sweeps: Sweep) -> None:
        super().__init__(world.runtime)
        self._only = sweeps

    def table(self) -> tuple[Sweep, ...]:
        return self._only


def test_one_of_two_leads(world: MemoryWorld) -> None:
    """Whoever campaigns first leads; the other stands by and sweeps nothing."""
    one, two = leader(world, "one"), leader(world, "two")
    one.step()
    calls = len(world.admission.calls)
    two.step()

    assert (one.epoch, two.epoch) == (1, None)
    assert len(world.admission.calls) == calls


def test_a_leader_stays_while_it_renews(world: MemoryWorld) -> None:
    """The epoch does not change for many TTLs."""
    one, two = leader(world, "one"), leader(world, "two")
    run_for(world, 40, one, two)

    assert one.epoch == 1
    assert not two.leading


def test_a_standby_takes_over_soon_after_the_row_expires(world: MemoryWorld) -> None:
    """A dead leader is replaced within its TTL and one look."""
    one, two = leader(world, "one"), leader(world, "two")
    run_for(world, 5, one, two)
    run_for(world, 9 + STANDBY_SECONDS + 0.1, two)

    assert two.epoch == 2


def test_a_standby_does_not_wait_for_the_row_of_a_leader_whose_session_has_ended(world: MemoryWorld) -> None:
    """A leader that died is replaced at the next look, with the next epoch."""
    one, two = leader(world, "one"), leader(world, "two")
    run_for(world, 1, one, two)
    world.leadership.ended_sessions = {"one"}
    run_for(world, STANDBY_SECONDS + 0.1, two)

    assert two.epoch == 2


def test_a_leader_whose_session_has_ended_trusts_itself_no_longer(world: MemoryWorld) -> None:
    """Another may lead already; it asks, and stands by."""
    one, two = leader(world, "one"), leader(world, "two")
    run_for(world, 1, one, two)
    world.leadership.ended_sessions = {"one"}

    assert not one.leading
    run_for(world, 1, two, one)
    assert (one.epoch, two.epoch) == (None, 2)


def test_a_holders_name_tells_its_host_and_process() -> None:
    assert host_and_pid(holder_name()) == (socket.gethostname(), os.getpid())
    assert host_and_pid("fe80::1:77:ab12") == ("fe80::1", 77)
    assert host_and_pid("somebody") == ("somebody", None)


def test_resigning_hands_over_at_once(world: MemoryWorld) -> None:
    """A leader that ends in order need not be waited for."""
    one, two = leader(world, "one"), leader(world, "two")
    run_for(world, 2, one, two)
    one.resign()
    run_for(world, STANDBY_SECONDS + 0.1, two)

    assert not one.leading
    assert two.epoch == 2


def test_two_leaders_never_trust_themselves_at_once(world: MemoryWorld) -> None:
    """A leader that was paused trusts itself no longer before another may start."""
    one, two = leader(world, "one"), leader(world, "two")
    one.step()
    for _ in range(200):
        world.clock.advance(0.1)
        two.step()
        assert not (one.leading and two.leading)
    assert two.leading

    one.step()  # it wakes up again
    assert not one.leading


def test_a_leader_without_an_answer_ends_its_term(world: MemoryWorld) -> None:
    """Any doubt ends it, long before the row expires; with an answer it goes on under its epoch."""
    one = leader(world)
    one.step()
    world.leadership.down = True
    run_for(world, 3.1, one)
    assert not one.leading

    world.leadership.down = False
    run_for(world, 0.6, one)
    assert one.epoch == 1


def test_a_failing_sweep_does_not_stop_the_others(world: MemoryWorld, caplog: pytest.LogCaptureFixture) -> None:
    """It is counted and logged under its name."""
    did: list[int] = []
    sweeps = OneSweep(
        world,
        Sweep("breaks", 1, 10, failing(ValueError("broken"))),
        Sweep("unlucky", 1, 10, failing(StoreUnavailable("down"))),
        Sweep("works", 1, 10, lambda epoch: did.append(epoch) or 1),
    )
    one = Leader(world.runtime, "one", sweeps=sweeps)
    run_for(world, 1.5, one)

    assert did == [1, 1]
    assert one.failures == {"breaks": 2, "unlucky": 2}
    assert one.did["works"] == 2
    assert "sweep breaks failed" in caplog.text
    assert one.leading


def test_a_sweep_that_is_not_the_leaders_ends_the_term(world: MemoryWorld) -> None:
    """The database has the last word: nothing more is swept until the next campaign."""
    after: list[int] = []
    sweeps = OneSweep(
        world,
        Sweep("fenced", 1, 10, failing(NotLeading(1))),
        Sweep("after", 1, 10, lambda epoch: after.append(epoch) or 1),
    )
    one = Leader(world.runtime, "one", sweeps=sweeps)
    one.step()

    assert not one.leading
    assert after == []


def test_a_pass_that_used_up_its_bound_is_followed_by_another(world: MemoryWorld) -> None:
    """A backlog is not worked off at one bounded pass a second."""
    left = [10, 10, 3]
    sweeps = OneSweep(world, Sweep("backlog", 1, 10, lambda epoch: left.pop(0) if left else 0))
    one = Leader(world.runtime, "one", sweeps=sweeps)

    for _ in range(3):
        one.step()

    assert left == []
    assert one.did["backlog"] == 23


def test_waking_brings_placing_forward(world: MemoryWorld) -> None:
    """A submit that left jobs waiting does not wait for the next second."""
    one = leader(world)
    run_for(world, 0.2, one)
    before = world.admission.calls.count("snapshot")
    one.on_wake("cancel", {})
    run_for(world, 0.1, one)
    assert world.admission.calls.count("snapshot") == before

    one.on_wake("place", {})
    run_for(world, 0.1, one)
    assert world.admission.calls.count("snapshot") == before + 1


def test_the_thread_leads_and_hands_over(world: MemoryWorld) -> None:
    """``start`` sweeps in the background; ``stop`` resigns."""
    one = leader(world)
    one.start()
    wait_for(lambda: one.leading, within_seconds=5, describe="it leads")
    assert one.stop()

    current = world.leadership.current()
    assert current is None
    assert not one.leading


class TestTenure:
    def test_trust_is_counted_from_before_the_question(self) -> None:
        """A slow answer shortens the term."""
        tenure = Tenure(ttl_seconds=10)
        tenure.answered(Term("one", 4, mine=True), asked_at=100, now=106)

        assert tenure.holds(100 + 10 * (1 - MARGIN) - 0.01)
        assert not tenure.holds(100 + 10 * (1 - MARGIN))

    def test_a_new_epoch_is_a_new_term(self) -> None:
        """Renewing is not."""
        tenure = Tenure(ttl_seconds=10)

        assert tenure.answered(Term("one", 4, mine=True), asked_at=0, now=0)
        assert not tenure.answered(Term("one", 4, mine=True), asked_at=3, now=3)
        assert tenure.answered(Term("one", 6, mine=True), asked_at=6, now=6)

    def test_anothers_term_ends_ours(self) -> None:
        tenure = Tenure(ttl_seconds=10)
        tenure.answered(Term("one", 4, mine=True), asked_at=0, now=0)
        tenure.answered(Term("two", 5, mine=False), asked_at=3, now=3)

        assert not tenure.holds(3)


def test_a_timetable_says_what_comes_next() -> None:
    """Due at first, then every interval."""
    sweep = Sweep("a", 2.0, 10, lambda epoch: 0)
    table = Timetable([sweep])
    assert table.due(0.0) == [sweep]

    table.ran(sweep, 3, now=0.0)
    assert table.due(1.9) == []
    assert table.seconds_to_next(0.5) == pytest.approx(1.5)
    assert table.due(2.0) == [sweep]
