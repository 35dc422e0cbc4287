"""The beat scheduler: who fires, from when on, and that nothing ends it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from orchestrator.testing.fakes import MemoryWorld, memory_world
from orchestrator_beat.scheduler import LONGEST_TICK, LeaderScheduler
from tests.support.waiting import wait_for


class FakeRedis:
    """The hash that firings are kept in."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.down = False

    def hgetall(self, key: str) -> dict[bytes, bytes]:
        self._answer()
        return dict(self.stored)

    def hset(self, key: str, name: str, value: str) -> None:
        self._answer()
        self.stored[name.encode()] = value.encode()

    def _answer(self) -> None:
        if self.down:
            raise ConnectionError("down")


class App(Celery):  # type: ignore[misc]
    """An app whose backend a test may set."""

    backend: Any = None


class Recording(LeaderScheduler):
    """Records what would be sent."""

    sent: list[tuple[str, str]]
    broken = False
    producer = None

    def send_task(self, name: str, *args: Any, **options: Any) -> None:
        if self.broken:
            raise OSError("the broker is gone")
        self.sent.append((name, options["task_id"]))


class World:
    """Apps that share a database and a Redis, as processes do."""

    def __init__(self) -> None:
        self.memory: MemoryWorld = memory_world()
        self.redis = FakeRedis()
        self.schedulers: list[Recording] = []

    def scheduler(self, seconds: float = 60) -> Recording:
        app = App("test", set_as_current=False)
        app.conf.beat_schedule = {"e": {"task": "t", "schedule": seconds}}
        app.conf.result_expires = None
        app.orchestrator_runtime = lambda: self.memory.runtime
        app.backend = type(
            "Backend", (), {"client": self.redis, "connection_errors": (ConnectionError,), "supports_autoexpire": True}
        )()
        Recording.sent = []
        made = Recording(app)
        made.sent = []
        self.schedulers.append(made)
        return made


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for scheduler in made.schedulers:
        scheduler.close()


def leading(scheduler: Recording) -> Recording:
    wait_for(lambda: scheduler._leader is not None and scheduler._leader.leading, within_seconds=5, describe="it leads")
    return scheduler


def stored(world: World) -> datetime:
    return datetime.fromisoformat(world.redis.stored[b"e"].decode())


def test_only_the_leader_fires(world: World) -> None:
    one = leading(world.scheduler(seconds=0.01))
    two = world.scheduler(seconds=0.01)
    wait_for(lambda: (one.tick(), two.tick(), one.sent)[-1], within_seconds=5, describe="one fires")

    assert two.sent == []
    assert 0 < two.tick() <= LONGEST_TICK


def test_a_new_leader_goes_on_where_the_old_one_was(world: World) -> None:
    """What the old one fired a moment ago is not fired again; what came due since then is."""
    now = datetime.now(UTC)
    world.redis.stored[b"e"] = (now - timedelta(seconds=59)).isoformat().encode()
    one = leading(world.scheduler())
    one.tick()
    assert one.sent == []

    one.close()
    world.redis.stored[b"e"] = (now - timedelta(seconds=61)).isoformat().encode()
    two = leading(world.scheduler())
    two.tick()
    assert len(two.sent) == 1
    assert stored(world) >= now


def test_two_leaders_that_overlap_ask_for_the_same_job(world: World) -> None:
    """The id follows from the entry and the firing before; the next firing has another."""
    before = (datetime.now(UTC) - timedelta(seconds=61)).isoformat().encode()
    ids = []
    for _ in range(2):
        world.redis.stored[b"e"] = before
        scheduler = leading(world.scheduler())
        scheduler.tick()
        ids += [task_id for _name, task_id in scheduler.sent]
        scheduler.close()

    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_nothing_that_a_tick_meets_ends_beat(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a broker that is gone, nor a Redis, nor a fault of ours."""
    one = leading(world.scheduler(seconds=0.01))
    one.broken = world.redis.down = True
    wait_for(lambda: (one.tick(), "the broker is gone" in caplog.text)[1], within_seconds=5, describe="it fails")
    one.schedule["e"].is_due = None  # type: ignore[method-assign]
    assert one.tick() <= LONGEST_TICK

    one.broken = world.redis.down = False
    assert one._leader is not None
    assert one._leader.leading


def test_a_standby_tick_is_short_whatever_was_asked_for(world: World) -> None:
    assert world.scheduler().max_interval == LONGEST_TICK


def test_closing_hands_over(world: World) -> None:
    one = leading(world.scheduler())
    one.close()
    one.close()  # Celery closes it twice when it is told to end

    assert world.memory.leadership.current() is None


def test_an_app_of_somebody_elses_is_refused() -> None:
    """With the words that help, before anything runs."""
    with pytest.raises(ImproperlyConfigured, match="install"):
        LeaderScheduler(Celery("test", set_as_current=False))
    LeaderScheduler(Celery("test", set_as_current=False), lazy=True)  # beat describes its scheduler so
