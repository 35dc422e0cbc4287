"""Sweeps, and the watch over leases."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dead_letter_ports import DeadLetter
from orchestrator.domain.entry import JobEntry
from orchestrator.domain.job import FailureClass, Resources
from orchestrator.errors import NotLeading, StreamUnavailable
from orchestrator.ports import DueEntry
from orchestrator.scheduling.snapshot import Candidate, GpuView, HostView, QueueView, Snapshot
from orchestrator.services.lease_watch import LeaseWatch
from orchestrator.services.sweeps import LEAST_WINDOW, Sweeps, plan_windows
from orchestrator.testing.fakes import MemoryLetters, MemoryWorld, memory_world

TTL = 15.0


@pytest.fixture
def world() -> MemoryWorld:
    made = memory_world()
    made.leadership.campaign("one", ttl=made.runtime.settings.lease_ttl_delta)
    return made


def host(node: str = "a", *, gpus: int = 2, busy: int = 0, look_ahead: int = 0, accepts: bool = True) -> HostView:
    cards = tuple(GpuView(f"{node}-{i}", i, "Sim", 1000, 0, i < busy, healthy=True) for i in range(gpus))
    return HostView(node, accepts, cards, frozenset({"gpu"}), 2, 1, look_ahead)


def waiting(world: MemoryWorld, count: int, hosts: tuple[HostView, ...]) -> None:
    jobs = tuple(Candidate(seq, "gpu", "default", 5, Resources(1)) for seq in range(1, count + 1))
    world.admission.picture = Snapshot(hosts, (), jobs, (QueueView("gpu", paused=False),))


def entry(seq: int) -> JobEntry:
    return JobEntry(f"job-{seq}", seq, "task", "gpu", None, {})


def test_the_global_pass_admits_and_publishes(world: MemoryWorld) -> None:
    """What fits is admitted with its host, and its entries are in the streams."""
    waiting(world, 3, (host("a"),))

    assert Sweeps(world.runtime).admit(1) == 2
    assert world.admission.placements == [(1, "a"), (2, "a")]
    assert [item.seq for item in world.streams.entries.values()] == [1, 2]


def test_an_admission_survives_a_redis_that_is_down(world: MemoryWorld) -> None:
    """Admitted is committed; publishing is caught up on later."""
    waiting(world, 1, (host("a"),))
    world.streams.down = True

    assert Sweeps(world.runtime).admit(1) == 1
    assert world.admission.placements == [(1, "a")]


def test_windows_follow_what_is_free(world: MemoryWorld) -> None:
    """Free GPUs, free CPU slots and look-ahead of the hosts that take jobs of the queue."""
    snapshot = Snapshot(
        (host("a", gpus=4, busy=1, look_ahead=10), host("b"), host("c", accepts=False)),
        (),
        (),
        (QueueView("gpu", paused=False), QueueView("other", paused=False)),
    )

    assert plan_windows(snapshot) == {"gpu": 3 + 1 + 10 + 2 + 1, "other": LEAST_WINDOW}


def test_windows_are_written_when_they_change(world: MemoryWorld) -> None:
    """A steady cluster costs no write a second; a new term writes them anew."""
    waiting(world, 0, (host("a"),))
    sweeps = Sweeps(world.runtime)
    for _ in range(3):
        sweeps.admit(1)
    assert world.admission.calls.count("set_windows") == 1
    assert world.admission.windows == {"gpu": 3}

    sweeps.begin_term()
    sweeps.admit(1)
    assert world.admission.calls.count("set_windows") == 2


def test_only_missing_entries_are_published_again(world: MemoryWorld) -> None:
    """An entry that is still in its stream is only noted as seen."""
    (there,) = world.streams.publish([entry(1)])
    world.admission.due = [
        DueEntry(entry(1), there),
        DueEntry(entry(2), "99-0"),  # Redis lost it
        DueEntry(entry(3), None),  # its publisher died
    ]

    assert Sweeps(world.runtime).publish_due(1) == 3
    assert sorted(item.seq for item in world.streams.entries.values()) == [1, 2, 3]
    assert world.admission.noted[1] == there
    assert set(world.admission.noted) == {1, 2, 3}
    assert world.admission.due == []


def test_nothing_is_noted_while_redis_is_down(world: MemoryWorld) -> None:
    """What was not looked for stays due."""
    world.streams.down = True
    world.admission.due = [DueEntry(entry(1), None)]

    with pytest.raises(StreamUnavailable):
        Sweeps(world.runtime).publish_due(1)
    assert world.admission.noted == {}


def test_a_flush_makes_every_entry_due(world: MemoryWorld) -> None:
    """Once, not at every pass."""
    world.streams.flush()
    sweeps = Sweeps(world.runtime)

    assert sweeps.heal_streams(1) == 1
    assert sweeps.heal_streams(1) == 0
    assert world.admission.calls.count("make_entries_due") == 1


def test_dead_letters_are_copied_once_into_the_stream_for_them(world: MemoryWorld) -> None:
    """The copy is for people; when Redis is down it is made later."""
    letter = DeadLetter(4, "job-4", "gpu", FailureClass.LOST, "its worker was lost", world.clock.now())
    letters = cast("MemoryLetters", world.runtime.letters)
    letters.waiting = [letter]
    sweeps = Sweeps(world.runtime)
    world.streams.down = True
    with pytest.raises(StreamUnavailable):
        sweeps.copy_letters(1)
    assert letters.waiting == [letter]
    world.streams.down = False

    assert (sweeps.copy_letters(1), sweeps.copy_letters(1)) == (1, 0)
    assert world.streams.letters == [("gpu", "job-4", "its worker was lost")]


def test_a_paused_leader_changes_nothing(world: MemoryWorld) -> None:
    """Every sweep that writes is refused under an old epoch."""
    waiting(world, 1, (host("a"),))
    world.admission.due = [DueEntry(entry(1), None)]
    world.admission.leases = [(7, 3)]
    sweeps = Sweeps(world.runtime)
    for _ in range(4):  # look often enough that the watch has no gap
        sweeps.expire_leases(0)
        world.clock.advance(TTL / 4)
    for run in (
        sweeps.admit,
        sweeps.publish_due,
        sweeps.release_due,
        sweeps.expire_leases,
        sweeps.lose_nodes,
        sweeps.end_forgotten,
        sweeps.prune,
    ):
        with pytest.raises(NotLeading):
            run(0)
    assert world.admission.placements == []
    assert world.admission.ended_leases == []


def test_the_audit_is_kept_longer_than_jobs(world: MemoryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a bound of its own, and one pass of the sweep heeds both."""
    asked: dict[str, timedelta] = {}

    def note(what: str, did: int) -> Callable[..., int]:
        return lambda *, older_than, limit, epoch: asked.update({what: older_than}) or did

    monkeypatch.setattr(world.admission, "prune", note("jobs", 2))
    monkeypatch.setattr(world.admission, "prune_audit", note("audit", 3))

    assert Sweeps(world.runtime).prune(1) == 5
    assert asked == {"jobs": timedelta(days=30), "audit": timedelta(days=365)}


def test_a_dead_holders_lease_ends_after_a_ttl_of_silence(world: MemoryWorld) -> None:
    """Seen unrenewed for a whole TTL on the leader's own clock, not a moment earlier."""
    world.admission.leases = [(7, 3)]
    sweeps = Sweeps(world.runtime)
    ended = []
    for second in range(17):
        if sweeps.expire_leases(1):
            ended.append(second)
        world.clock.advance(1)

    assert ended == [15]
    assert world.admission.ended_leases == [(7, 3)]


def test_a_renewal_starts_the_observation_anew(world: MemoryWorld) -> None:
    """A slow holder is not a dead one."""
    world.admission.leases = [(7, 3)]
    sweeps = Sweeps(world.runtime)
    for second in range(25):
        if second == 12:
            world.admission.leases = [(7, 4)]
        assert sweeps.expire_leases(1) == 0
        world.clock.advance(1)


class TestLeaseWatch:
    def test_a_gap_in_looking_starts_the_observation_anew(self) -> None:
        """While the leader could not ask, holders could not renew either."""
        watch = LeaseWatch(ttl_seconds=15, longest_gap_seconds=5)
        watch.observe([(1, 0)], now=0)
        watch.observe([(1, 0)], now=4)

        assert watch.observe([(1, 0)], now=20) == []
        for now in (24, 28, 32, 34.9):
            assert watch.observe([(1, 0)], now=now) == []
        assert watch.observe([(1, 0)], now=35) == [(1, 0)]

    def test_a_lease_that_was_gone_is_observed_anew(self) -> None:
        watch = LeaseWatch(ttl_seconds=2, longest_gap_seconds=5)
        watch.observe([(1, 0)], now=0)
        watch.observe([], now=1)
        watch.observe([(1, 0)], now=1.5)

        assert watch.observe([(1, 0)], now=3) == []

    @given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 2)), min_size=1, max_size=60))
    def test_nothing_is_given_up_before_a_ttl_without_renewals(self, steps: list[tuple[float, int]]) -> None:
        """Whatever the rhythm of looks and renewals."""
        watch = LeaseWatch(ttl_seconds=10, longest_gap_seconds=2.5)
        now, renewals, renewed_at = 0.0, 0, 0.0
        for pause, renewed in steps:
            now += pause
            if renewed:
                renewals, renewed_at = renewals + renewed, now
            for _lease, seen in watch.observe([(1, renewals)], now=now):
                assert seen == renewals
                assert now - renewed_at >= 10


def test_a_host_that_drains_is_given_nothing(world: MemoryWorld) -> None:
    waiting(world, 1, (replace(host("a"), accepts=False),))

    assert Sweeps(world.runtime).admit(1) == 0
