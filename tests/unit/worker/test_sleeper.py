"""Runners that are to sleep or to wake up, and what becomes of those that cannot, or die meanwhile."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuProcess, GpuSample
from orchestrator.domain.job import JobKind, Resources
from orchestrator.domain.lease import PoolMember, PoolResize, Renewal
from orchestrator.domain.pool import Leave
from orchestrator.domain.wants import Wants
from orchestrator.worker.host import Host, Line, Shape, WaitingJob
from orchestrator.worker.run_times import RunTimes
from orchestrator.worker.sleeper import READINGS, Sleeper

GPU_MIB, SHARE_MIB, LEFT_MIB = 1000, 800, 100
AWAKE = Renewal(live=frozenset({7, 8, 9}))
ASLEEP = Renewal(live=frozenset({7, 8, 9}), asleep=frozenset({7, 8, 9}))


class Runners:
    """``Lines`` as far as runners are told to turn: each is named after its line, and does as it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.ended: list[Line] = []
        self.listens = True

    def turn(self, line: Line, to: str) -> bool:
        """Remember what a runner was told, if it can be told anything."""
        if self.listens:
            self.told.append(to)
        return self.listens

    def runner_id(self, line: Line) -> str:
        """Return the runner's name."""
        return f"r{line.key}"

    def end(self, line: Line) -> None:
        """Remember that its runner was ended."""
        self.ended.append(line)

    def change_lease(self, line: Line, lease_id: int, asked_at: float) -> None:
        """Take another lease."""
        line.lease_id = lease_id


class Requests:
    """``Ledger`` as far as leases are asked for and given back."""

    def __init__(self) -> None:
        self.resizes: list[PoolResize] = []
        self.releases: list[int] = []

    def add(self, *, resizes: Sequence[PoolResize] = (), releases: Sequence[int] = ()) -> None:
        """Remember it."""
        self.resizes += resizes
        self.releases += releases


class World:
    """A host whose only GPU has a pool's runner with a share, and what the runner and the database hear."""

    def __init__(self) -> None:
        self.host = Host(cpu_slots=1, run_times=RunTimes(look_ahead_seconds=0.5, most_ahead=64))
        self.host.update_gpus([self.sample(SHARE_MIB)])
        asked = Resources(1, SHARE_MIB, Wants(pool="chat", generation=1))
        self.host.add_waiting(WaitingJob(1, "load", Shape(asked, "a", JobKind.TASK, "load", 5), 1))
        ((self.line, _jobs),) = self.host.choose()
        self.host.take_out(self.line, 1)
        assert self.line.pool is not None
        self.place = self.line.pool
        self.line.lease_id, self.place.member = 7, PoolMember(7, "chat", "llama", None, 1.0)
        self.runners, self.requests = Runners(), Requests()
        self.sleeper = Sleeper(self.host, cast("Any", self.runners))
        self.sleeper.ledger = cast("Any", self.requests)

    def sample(self, used_mib: int, *processes: GpuProcess) -> GpuSample:
        """Return a reading of the GPU."""
        return GpuSample(Gpu("GPU-0", 0, "Sim", GPU_MIB, "1"), used_mib, GpuHealth.HEALTHY, processes, None, None, None)

    def turned(self, to: str, error: str | None = None) -> None:
        """Have the runner say that it has turned, or could not."""
        self.sleeper.on_turned(self.runners.runner_id(self.line), {"to": to, "error": error})

    def read(self, sample: GpuSample) -> None:
        """Read the GPU as often as it takes."""
        for _ in range(READINGS):
            self.sleeper.look([sample])

    def answer(self, new: int | None) -> None:
        """Have the database answer the latest request."""
        asked = self.requests.resizes[-1]
        self.sleeper.on_resized(0.0, [asked], [(asked.lease_id, new)])

    def fall_asleep(self) -> None:
        """Have the runner sleep under lease 8."""
        self.sleeper.heed(ASLEEP)
        self.turned("sleep")
        self.read(self.sample(LEFT_MIB))
        self.answer(8)
        assert (self.place.asleep, self.place.turning, self.line.lease_id) == (True, False, 8)


@pytest.fixture
def world() -> World:
    return World()


def test_a_runner_sleeps_under_a_lease_of_what_is_left_and_wakes_under_one_of_its_former_size(world: World) -> None:
    world.fall_asleep()
    assert (world.line.grant.memory_mib, world.line.is_open) == (LEFT_MIB, False)
    assert world.host._gpus["GPU-0"].reserved_mib == LEFT_MIB
    world.sleeper.heed(ASLEEP)
    assert world.runners.told == ["sleep"], "it sleeps already"

    world.sleeper.heed(AWAKE)
    assert world.requests.resizes[-1].grant.memory_mib == SHARE_MIB
    world.answer(9)
    assert (world.runners.told, world.line.is_open) == (["sleep", "wake"], False)
    world.turned("wake")
    assert (world.line.lease_id, world.line.grant.memory_mib, world.line.is_open) == (9, SHARE_MIB, True)


def test_nothing_is_measured_before_a_reading_that_was_begun_after_the_models_slept(world: World) -> None:
    world.sleeper.heed(ASLEEP)
    world.sleeper.look([world.sample(LEFT_MIB)])
    assert world.requests.resizes == []
    world.turned("sleep")
    world.sleeper.look([world.sample(SHARE_MIB)])  # it may have been begun before
    assert world.requests.resizes == []
    world.sleeper.look([world.sample(LEFT_MIB)])
    assert [one.grant.memory_mib for one in world.requests.resizes] == [LEFT_MIB]


def test_who_has_a_job_is_to_leave_or_is_not_renewed_stays_as_it_is(world: World) -> None:
    world.host.add_waiting(
        WaitingJob(2, "job", Shape(Resources(1, None, Wants(model="chat")), "a", JobKind.TASK, "ask", 5), 2)
    )
    world.host.choose()
    world.sleeper.heed(ASLEEP)
    world.host.take_out(world.line, 2)
    world.sleeper.heed(Renewal(asleep=frozenset({7})))
    world.place.leave = Leave.DRAIN
    world.sleeper.heed(ASLEEP)
    assert world.runners.told == []


def test_of_a_gpu_that_others_use_too_only_the_runners_own_processes_count(world: World) -> None:
    world.sleeper.heed(ASLEEP)
    world.turned("sleep")
    mine = world.runners.runner_id(world.line)
    world.read(world.sample(900, GpuProcess(1, 60, runner=mine), GpuProcess(2, 30, runner=mine), GpuProcess(3, 800)))
    assert [one.grant.memory_mib for one in world.requests.resizes] == [90]


@pytest.mark.parametrize(("used", "kept"), [(0, 1), (LEFT_MIB, LEFT_MIB), (SHARE_MIB, None), (GPU_MIB, None)])
def test_where_no_process_is_told_all_that_is_used_counts(world: World, used: int, kept: int | None) -> None:
    """Then nothing is given back that might be in use; a lease is of one MiB at least."""
    world.sleeper.heed(ASLEEP)
    world.turned("sleep")
    world.read(world.sample(used))
    assert [one.grant.memory_mib for one in world.requests.resizes] == ([] if kept is None else [kept])
    assert world.place.turning is (kept is not None)


def test_a_runner_whose_gpu_is_not_read_any_more_keeps_its_lease_and_tries_again(world: World) -> None:
    world.sleeper.heed(ASLEEP)
    world.turned("sleep")
    for _ in range(READINGS):
        world.sleeper.look([])
    assert (world.requests.resizes, world.place.turning) == ([], False)
    world.sleeper.heed(ASLEEP)
    assert world.runners.told == ["sleep", "sleep"]


def test_a_runner_that_cannot_sleep_stays_awake_and_is_told_again(world: World) -> None:
    world.sleeper.heed(ASLEEP)
    world.turned("sleep", "no room in the host's memory")
    world.read(world.sample(LEFT_MIB))
    assert (world.line.is_open, world.requests.resizes) == (True, [])
    world.runners.listens = False
    world.sleeper.heed(ASLEEP)
    assert world.line.is_open, "nor is one that cannot be told anything"


def test_a_lease_that_the_database_does_not_give_is_asked_for_again(world: World) -> None:
    world.sleeper.heed(ASLEEP)
    world.turned("sleep")
    world.read(world.sample(LEFT_MIB))
    world.answer(None)
    assert (world.line.lease_id, world.line.grant.memory_mib, world.place.asleep) == (7, SHARE_MIB, False)

    world.fall_asleep()
    for _ in range(2):
        world.sleeper.heed(AWAKE)
        world.answer(None)
        assert (world.line.lease_id, world.place.asleep, world.line.is_open) == (8, True, False)
    assert [one.grant.memory_mib for one in world.requests.resizes[-2:]] == [SHARE_MIB] * 2


def test_a_runner_that_cannot_wake_up_is_ended(world: World) -> None:
    """Whether it fails or cannot be told: its pool has another one loaded. It takes no job meanwhile."""
    world.fall_asleep()
    world.sleeper.heed(AWAKE)
    world.answer(9)
    world.turned("wake", "out of memory")
    assert (world.runners.ended, world.line.is_open) == ([world.line], False)

    other = World()
    other.fall_asleep()
    other.sleeper.heed(AWAKE)
    other.runners.listens = False
    other.answer(9)
    assert (other.runners.ended, other.line.is_open) == ([other.line], False)


def test_of_a_runner_that_dies_while_it_turns_nothing_is_left_behind(world: World) -> None:
    """Neither a reading that is waited for, nor a lease that was granted to it after its death."""
    world.sleeper.heed(ASLEEP)
    world.turned("sleep")
    world.host.close(world.line)
    world.turned("sleep")
    world.read(world.sample(LEFT_MIB))
    assert world.requests.resizes == []

    late = World()
    late.sleeper.heed(ASLEEP)
    late.turned("sleep")
    late.read(late.sample(LEFT_MIB))
    late.host.close(late.line)
    late.answer(8)
    assert late.requests.releases == [8]
    assert late.host._gpus["GPU-0"].reserved_mib == 0
    late.answer(None)
    assert late.requests.releases == [8]
