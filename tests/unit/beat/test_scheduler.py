"""The beat scheduler: who fires, from when on, and that nothing ends it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from orchestrator.schedule_ports import Firing
from orchestrator.testing.fakes import MemoryWorld, memory_world
from orchestrator_beat.scheduler import LONGEST_TICK, LeaderScheduler
from tests.support.waiting import wait_for


class App(Celery):  # type: ignore[misc]
    """An app whose backend a test may set."""

    backend: Any = None


class Recording(LeaderScheduler):
    """Records what would be sent."""

    sent: list[tuple[str, str]]
    broken = False
    refused = ""
    producer = None

    def send_task(self, name: str, *args: Any, **options: Any) -> None:
        if self.broken:
            raise OSError("the broker is gone")
        if name == self.refused:
            raise TypeError("it cannot be serialized")
        self.sent.append((name, options["task_id"]))


class World:
    """Apps that share a database, as processes do."""

    def __init__(self) -> None:
        self.memory: MemoryWorld = memory_world()
        self.schedulers: list[Recording] = []

    def scheduler(self, seconds: float = 60, **conf: Any) -> Recording:
        app = App("test", set_as_current=False)
        app.conf.beat_schedule = {"e": {"task": "t", "schedule": seconds}}
        app.conf.update(result_expires=None, **conf)
        app.orchestrator_runtime = lambda: self.memory.runtime
        app.backend = type("Backend", (), {"supports_autoexpire": True})()
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


def fired(world: World, at: datetime, *, task_id: str | None = "1", is_sent: bool = True) -> None:
    """Have the entry fired at an instant."""
    world.memory.firings.known["e"] = Firing(at, task_id, is_sent=is_sent)


def test_only_the_leader_fires(world: World) -> None:
    one = leading(world.scheduler(seconds=0.01))
    two = world.scheduler(seconds=0.01)
    wait_for(lambda: (one.tick(), two.tick(), one.sent)[-1], within_seconds=5, describe="one fires")

    assert two.sent == []
    assert 0 < two.tick() <= LONGEST_TICK


def test_a_new_leader_goes_on_where_the_old_one_was(world: World) -> None:
    """What the old one fired a moment ago is not fired again; what came due since then is, once."""
    now = datetime.now(UTC)
    fired(world, now - timedelta(seconds=50))
    one = leading(world.scheduler())
    one.tick()
    assert one.sent == []

    one.close()
    fired(world, now - timedelta(seconds=1000))
    two = leading(world.scheduler())
    two.tick()
    two.tick()
    assert len(two.sent) == 1
    known = world.memory.firings.known["e"]
    assert (known.fired_at >= now, known.is_sent, known.task_id) == (True, True, two.sent[0][1])


def test_a_schedule_begins_with_its_first_leader_and_not_with_each(world: World) -> None:
    one = leading(world.scheduler())
    one.tick()
    began = world.memory.firings.known["e"]
    one.close()
    two = leading(world.scheduler())
    two.tick()

    assert began.task_id is None
    assert world.memory.firings.known["e"] == began
    assert two.schedule["e"].last_run_at == began.fired_at


def test_two_leaders_that_overlap_ask_for_the_same_job(world: World) -> None:
    """The id follows from the entry and the firing before; the next firing has another."""
    before = datetime.now(UTC) - timedelta(seconds=61)
    ids = []
    for _ in range(2):
        fired(world, before)
        scheduler = leading(world.scheduler())
        scheduler.tick()
        ids += [task_id for _name, task_id in scheduler.sent]
        scheduler.close()

    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_a_leader_that_was_replaced_without_knowing_does_not_fire(world: World) -> None:
    """The note is fenced; the one that leads now fires, from the same firing before."""
    one = leading(world.scheduler())
    one.tick()
    before = world.memory.firings.known["e"]
    one.schedule["e"].last_run_at -= timedelta(seconds=61)
    one._heap = None
    world.memory.leadership._row = ("another", 99, float("inf"))
    one.tick()

    assert one.sent == []
    assert world.memory.firings.known["e"] == before


def test_what_a_leader_noted_and_did_not_send_is_sent_by_the_next_under_its_id(world: World) -> None:
    fired(world, datetime.now(UTC) - timedelta(seconds=10), task_id="noted", is_sent=False)
    one = leading(world.scheduler())
    one.tick()
    one.tick()

    assert one.sent == [("t", "noted")]
    assert world.memory.firings.known["e"].is_sent


def test_a_firing_waits_for_the_broker_and_the_database_and_is_sent_once(world: World) -> None:
    one = leading(world.scheduler())
    one.tick()
    one.schedule["e"].last_run_at -= timedelta(seconds=61)
    one._heap = None
    world.memory.firings.down = True
    one.tick()
    world.memory.firings.down, one.broken = False, True
    one.tick()
    noted = world.memory.firings.known["e"]
    assert (one.sent, noted.is_sent) == ([], False)

    one.broken = False
    one.tick()
    one.tick()
    assert one.sent == [("t", noted.task_id)]


def test_an_entry_that_can_never_be_sent_holds_up_no_other(world: World) -> None:
    one = leading(world.scheduler(seconds=0.01))
    one.schedule["never"] = one.Entry(name="never", task="x", schedule=0.01, options={"unknown": object()}, app=one.app)
    one.refused = "x"
    wait_for(lambda: (one.tick(), len(one.sent) >= 2)[1], within_seconds=5, describe="it goes on")

    assert {name for name, _ in one.sent} == {"t"}


def test_schedules_reckon_in_the_apps_time_zone_whichever_leader_fired_before(world: World) -> None:
    """Crontab reads hours and days off the instant of the last firing."""
    fired(world, datetime(2026, 3, 29, 0, 30, tzinfo=UTC))
    one = world.scheduler(timezone="Europe/Berlin")
    leading(one).tick()

    assert [name for name, _ in one.sent] == ["t"]
    (zone,) = {entry.last_run_at.tzinfo for entry in one.schedule.values()}
    assert str(zone) == "Europe/Berlin"


def test_nothing_that_a_tick_meets_ends_beat(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a broker that is gone, nor a database, nor a fault of ours."""
    one = leading(world.scheduler(seconds=0.01))
    one.broken = world.memory.firings.down = True
    wait_for(lambda: (one.tick(), "waits for the database" in caplog.text)[1], within_seconds=5, describe="it fails")
    world.memory.firings.down = False
    wait_for(lambda: (one.tick(), "the broker is gone" in caplog.text)[1], within_seconds=5, describe="it fails")
    one.schedule["e"].is_due = None  # type: ignore[method-assign]
    assert one.tick() <= LONGEST_TICK

    one.broken = world.memory.firings.down = False
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
