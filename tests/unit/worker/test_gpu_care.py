"""What a worker makes of the guardian's news of GPUs."""

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config import Settings
from orchestrator.domain.cluster import GpuHealth, GpuOrder
from orchestrator.gpus.simulated import make_gpus
from orchestrator.guardian.messages import Cleared, GpuFault, GpuReport, Stuck
from orchestrator.testing.clock import FakeClock
from orchestrator.worker.gpu_care import GpuCare
from orchestrator.worker.host import Host
from orchestrator.worker.run_times import RunTimes

CARD, OTHER = make_gpus(2, owner="care")
GPU = CARD.gpu.uuid
REPORT = GpuReport((CARD, OTHER))
STUCK = Stuck("r1", (GPU,), (4711,))


class World:
    """A worker's care of two GPUs; its runners are none, and its clock is moved by hand."""

    def __init__(self) -> None:
        self.clock, self.confirmed = FakeClock(), list[tuple[int, str | None]]()
        host = Host(cpu_slots=1, run_times=RunTimes(look_ahead_seconds=0, most_ahead=0))
        guardian = SimpleNamespace(clear=lambda *_, **__: None, note_use=lambda _: None)
        runners = type(
            "Runners", (), {"__iter__": lambda _: iter(()), "guardian": guardian, "evict": lambda *_, **__: []}
        )
        pool: Any = SimpleNamespace(host=host, runners=runners(), clock=self.clock)
        self.care = GpuCare(pool, Settings(gpu_quarantine=60, gpu_self_test=0), self.clock)
        self.care.on_change, self.care.note = lambda: None, lambda _: None
        self.care.lending.confirm = lambda lease, refusal: self.confirmed.append((lease, refusal))
        self.host = host

    def read(self, report: GpuReport = REPORT, after: float = 0) -> GpuHealth:
        """Take in a reading, so much later, and return the first GPU's health."""
        self.clock.advance(after)
        self.care.on_news(report)
        return {sample.gpu.uuid: sample.health for sample in self.care.samples}[GPU]

    @property
    def reason(self) -> str | None:
        """Why the first GPU is not healthy."""
        return self.care.standings()[GPU].reason


@pytest.fixture
def world() -> World:
    return World()


def test_a_host_is_told_of_by_its_first_reading_and_not_by_what_an_earlier_worker_left(world: World) -> None:
    """Registered without GPUs, it would have lost them for everybody who submits."""
    world.care.on_news(STUCK)
    assert not world.care.take_news()
    world.care.on_news(REPORT)
    assert world.care.take_news()
    assert not world.care.take_news()
    unread = World()
    unread.care.on_news(GpuFault("no driver"))
    assert unread.care.take_news(), "a host whose GPUs cannot be read still runs CPU jobs"


def test_a_gpu_with_a_process_that_outlives_kill_stays_out_until_that_is_gone(world: World) -> None:
    """For however long, and for one strike; its neighbour is leased."""
    assert world.read() is GpuHealth.HEALTHY
    world.care.on_news(STUCK)
    assert (world.care.standings()[GPU].health, world.reason) == (GpuHealth.QUARANTINED, "KILL does not end pid 4711")
    assert world.host.free_gpus() == 1
    assert world.read(after=6000) is GpuHealth.QUARANTINED

    world.care.on_news(Stuck("r1", (GPU,), (), is_over=True))
    assert world.read() is GpuHealth.HEALTHY
    assert world.care.standings()[GPU].strikes == 1


def test_a_release_by_hand_does_not_lease_it_before(world: World) -> None:
    world.read()
    world.care.on_news(STUCK)

    world.care.obey({GPU: GpuOrder(releases=1)})
    assert world.read(after=60) is not GpuHealth.HEALTHY
    world.care.on_news(Stuck("r1", (GPU,), (), is_over=True))
    world.read()
    assert world.read(after=60) is GpuHealth.HEALTHY


def test_what_an_earlier_worker_left_is_held_against_its_gpu_once_that_is_known(world: World) -> None:
    world.care.on_news(STUCK)
    world.read()

    assert world.read(after=1) is GpuHealth.QUARANTINED
    assert world.reason == "KILL does not end pid 4711"


def test_who_used_a_gpu_last_is_named_when_it_does_not_come_clean(world: World) -> None:
    """A job, or a lease without one; nobody before anybody used it."""
    world.read()
    world.care.on_unclean((GPU,), "dirty")
    assert world.reason == "dirty"
    world.care.note_user((GPU,), "job j (pid 7)")
    world.care.on_unclean((GPU,), "dirty")
    assert world.reason == "last used by job j (pid 7): dirty"

    world.care.obey({GPU: GpuOrder(lent=True, unready=(9,))})
    world.care.on_news(Cleared(9))
    world.care.obey({GPU: GpuOrder()})
    world.care.on_news(Cleared(10, "dirty", (GPU,)))
    assert world.reason == "last used by lease 9: dirty"
    assert world.confirmed == [(9, None)]
