"""Sweeps by hand, and what leaders write down of theirs."""

import pytest

from orchestrator.domain.entry import JobEntry
from orchestrator.errors import NotLeading, StreamUnavailable, UnknownSweep
from orchestrator.ports import DueEntry
from orchestrator.services.hand_sweeps import RECLAIM, sweep_by_hand, sweep_table
from orchestrator.services.lead import TELL_SECONDS, Leader
from orchestrator.testing.fakes import MemoryWorld, memory_world


@pytest.fixture
def world() -> MemoryWorld:
    return memory_world(leader_ttl=9)


def test_a_pass_is_run_in_the_name_of_the_leader(world: MemoryWorld) -> None:
    """Under its epoch, beside it, and written down."""
    world.leadership.campaign("one", ttl=world.runtime.settings.lease_ttl_delta)
    world.admission.leases = [(7, 3)]

    (done,) = sweep_by_hand(world.runtime, "expire_leases")

    assert (done.name, done.did, done.more, done.epoch) == ("expire_leases", 1, False, 1)
    assert world.admission.ended_leases == [(7, 3)], "by hand nobody is watched first"
    assert world.sweep_log.read()[0].did == 1
    term = world.leadership.current()
    assert term is not None
    assert term.holder == "one"


def test_without_a_leader_it_is_a_term_of_its_own(world: MemoryWorld) -> None:
    """It ends with the passes, so that whoever stands by need not wait."""
    done = sweep_by_hand(world.runtime, *RECLAIM)

    assert [one.name for one in done] == list(RECLAIM)
    assert {one.epoch for one in done} == {1}
    assert world.leadership.current() is None


def test_every_sweep_can_be_run_by_hand(world: MemoryWorld) -> None:
    names = [sweep.name for sweep in sweep_table(world.runtime)]

    assert [one.name for one in sweep_by_hand(world.runtime, *names)] == names


def test_an_unknown_sweep_is_refused_before_any_runs(world: MemoryWorld) -> None:
    with pytest.raises(UnknownSweep, match="'nonsense'; there are: expire_leases"):
        sweep_by_hand(world.runtime, "prune", "nonsense")
    assert world.admission.calls == []


def test_a_pass_that_fails_is_written_down_and_told(world: MemoryWorld) -> None:
    world.streams.down = True
    world.admission.due = [DueEntry(JobEntry("job-1", 1, "task", "gpu", None, {}), None)]

    with pytest.raises(StreamUnavailable):
        sweep_by_hand(world.runtime, "publish_due")
    (record,) = world.sweep_log.read()
    assert (record.passes, record.failures, record.last_error) == (1, 1, "Redis: down")
    assert world.leadership.current() is None


def test_a_takeover_in_the_middle_is_tried_again_once(world: MemoryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the new leader's epoch; when that one is replaced too, the caller hears it."""
    ttl = world.runtime.settings.lease_ttl_delta
    world.leadership.campaign("one", ttl=ttl)
    takeovers = iter(["two"])

    def prune(**_: object) -> int:
        holder = next(takeovers, None)
        if holder is not None:
            term = world.leadership.current()
            assert term is not None
            world.leadership.resign(term.holder, term.epoch)
            world.leadership.campaign(holder, ttl=ttl)
            raise NotLeading(term.epoch)
        return 0

    monkeypatch.setattr(world.admission, "prune", prune)
    assert sweep_by_hand(world.runtime, "prune")[0].epoch == 2
    takeovers = iter(["three", "four"])
    with pytest.raises(NotLeading):
        sweep_by_hand(world.runtime, "prune")


def test_a_leader_writes_down_what_its_sweeps_did(world: MemoryWorld) -> None:
    """Now and then, what is left over when it resigns, and later what could not be written at once."""
    leader = Leader(world.runtime, "one")
    leader.step()
    first = {record.name: record.passes for record in world.sweep_log.read()}
    assert first == {sweep.name: 1 for sweep in sweep_table(world.runtime)}

    world.sweep_log.down = True
    for _ in range(round(TELL_SECONDS) + 1):
        world.clock.advance(1)
        leader.step()
    world.sweep_log.down = False
    leader.resign()

    told = {record.name: record.passes for record in world.sweep_log.read()}
    assert told["admit"] == round(TELL_SECONDS) + 2
    assert world.sweep_log.epoch == 1
