"""What a host does with GPUs that are lent to holders without a job."""

from types import SimpleNamespace
from typing import Any, cast

from orchestrator.domain.cluster import GpuOrder
from orchestrator.guardian.messages import Cleared
from orchestrator.worker.lending import Lending


class World:
    """A worker's lending, with what it asked of its guardian and what it wrote."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.written: list[tuple[int, str | None]] = []
        guardian = SimpleNamespace(
            clear=lambda lease, gpus, exclusive, after: self.asked.append(("clear", lease, gpus, exclusive, after)),
            drop_clearance=lambda lease: self.asked.append(("drop", lease)),
            note_use=lambda gpus: self.asked.append(("used", gpus)),
        )
        self._runners = cast(Any, SimpleNamespace(guardian=guardian, evict=lambda gpus, keep: ["r1"]))
        self.lending = Lending()
        self.lending.confirm = lambda lease, refusal: self.written.append((lease, refusal))

    def heed(self, **orders: GpuOrder) -> list[tuple[Any, ...]]:
        """Follow the orders and return what was asked of the guardian for it."""
        self.asked.clear()
        self.lending.heed(orders, self._runners)
        return list(self.asked)


def test_a_lease_is_cleared_once_and_confirmed_until_the_database_shows_it() -> None:
    """What the database has not taken is written again with the next heartbeat."""
    world = World()
    both = GpuOrder(lent=True, unready=(7,))

    assert world.heed(a=both, b=both) == [("clear", 7, ["a", "b"], True, ["r1"])]
    assert world.heed(a=both, b=both) == []
    world.lending.on_cleared(Cleared(7))
    assert world.heed(a=both, b=both) == []
    assert world.written == [(7, None), (7, None)]
    ready = GpuOrder(lent=True)
    assert world.heed(a=ready, b=ready) == []
    assert len(world.written) == 2


def test_shares_of_one_gpu_are_cleared_each_for_itself() -> None:
    world = World()

    asked = world.heed(a=GpuOrder(lent_mib=300, unready=(7, 8)))

    assert asked == [("clear", 7, ["a"], False, ["r1"]), ("clear", 8, ["a"], False, ["r1"])]
    world.lending.on_cleared(Cleared(8, "a is locked"))
    assert world.written == [(8, "a is locked")]


def test_a_lease_that_ended_meanwhile_is_not_confirmed() -> None:
    world = World()
    world.heed(a=GpuOrder(lent=True, unready=(7,)))

    assert ("drop", 7) in world.heed(a=GpuOrder())
    world.lending.on_cleared(Cleared(7))
    assert world.written == []


def test_what_was_given_back_is_read_anew_for_the_next_user() -> None:
    """Its holder holds no device lock over HTTP: the guardian cannot know that something ran there."""
    world = World()
    world.heed(a=GpuOrder(lent=True), b=GpuOrder(lent_mib=300))

    assert world.heed(a=GpuOrder(), b=GpuOrder(lent_mib=100)) == [("used", ["a"])]
    assert world.heed(a=GpuOrder(), b=GpuOrder()) == [("used", ["b"])]
