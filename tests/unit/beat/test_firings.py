"""When entries fire under a clock that the test sets: timedeltas, crontabs and solar events, through leader changes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule, solar

from orchestrator.errors import StreamUnavailable
from orchestrator.testing.fakes import MemoryWorld, memory_world
from orchestrator_beat.firings import LONGEST_NAME, Shooter, key

BERLIN = ZoneInfo("Europe/Berlin")
Make = Callable[[Celery, Callable[[], datetime]], Any]


class Beats:
    """A schedule of one entry, looked at once a minute by whoever leads, as beat processes do."""

    def __init__(self, make: Make, start: datetime) -> None:
        self.world: MemoryWorld = memory_world()
        self.now = start
        self.app = Celery("beats", set_as_current=False)
        self.app.conf.timezone = "Europe/Berlin"
        self.sent: list[tuple[datetime, str]] = []
        self.broken = False
        self._make = make
        self.change_leader()

    def change_leader(self) -> None:
        """Another process leads, which knows nothing but what is stored."""
        self.world.leadership._row = ("x", (self.epoch if hasattr(self, "epoch") else 0) + 1, float("inf"))
        self.epoch = self.world.leadership._row[1]
        made = self._make(self.app, lambda: self.now.astimezone(BERLIN))
        self.schedule = {"e": ScheduleEntry("e", "t", schedule=made, app=self.app)}
        self.shooter = Shooter(self.world.firings, self._send, BERLIN)
        self.shooter.take_over(self.schedule, epoch=self.epoch)

    def tick(self) -> None:
        """Fire what is due."""
        self.shooter.fire_late(epoch=self.epoch)
        entry = self.schedule["e"]
        if entry.is_due().is_due:
            self.schedule["e"] = entry.next()
            self.shooter.fire(entry, self.schedule["e"].last_run_at, epoch=self.epoch)

    def run(self, span: timedelta, *, step: timedelta = timedelta(minutes=1), changes: int = 0) -> None:
        """Let time pass; the leader changes after every so many ticks."""
        ticks = int(span / step)
        for number in range(ticks):
            self.now += step
            if changes and number % changes == changes - 1:
                self.change_leader()
            self.tick()

    def _send(self, entry: ScheduleEntry) -> None:
        if self.broken:
            raise StreamUnavailable("down")
        self.sent.append((self.now.astimezone(BERLIN), entry.options["task_id"]))

    @property
    def fired(self) -> list[str]:
        """When it fired, in local time."""
        return [at.strftime("%d. %H:%M") for at, _ in self.sent]


def every(**parts: int) -> Make:
    return lambda app, now: schedule(timedelta(**parts), nowfun=now, app=app)


def cron(**fields: Any) -> Make:
    return lambda app, now: crontab(**fields, nowfun=now, app=app)


START = datetime(2026, 6, 1, 0, 0, 30, tzinfo=BERLIN)


@pytest.fixture(params=[0, 1, 7], ids=["one leader", "a leader each minute", "a leader each seven minutes"])
def changes(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_an_interval_counts_on_through_leader_changes(changes: int) -> None:
    beats = Beats(every(minutes=20), START)
    beats.run(timedelta(hours=1, minutes=5), changes=changes)

    assert beats.fired == ["01. 00:20", "01. 00:40", "01. 01:00"]


def test_a_crontab_fires_once_at_its_local_time(changes: int) -> None:
    """Stored instants are UTC; read in another zone than the app's, three o'clock would come twice a day."""
    beats = Beats(cron(minute=0, hour=3), START)
    beats.run(timedelta(days=2), changes=changes)

    assert beats.fired == ["01. 03:00", "02. 03:00"]


def test_solar_events_fire_once_a_day(changes: int) -> None:
    """Sunrise in Berlin in June: about a quarter to five, a little earlier each day."""
    beats = Beats(lambda app, now: solar("sunrise", 52.52, 13.4, nowfun=now, app=app), START)
    beats.run(timedelta(days=2), changes=changes * 11)

    assert [at[:5] for at in beats.fired] == ["01. 0", "02. 0"]
    assert all(at[4:] > "04:30" and at[4:] < "05:00" for at in beats.fired), beats.fired


def test_an_hour_that_comes_twice_in_autumn_fires_as_under_one_leader(changes: int) -> None:
    one = Beats(cron(minute=30), datetime(2026, 10, 25, 0, 0, 30, tzinfo=BERLIN))
    other = Beats(cron(minute=30), datetime(2026, 10, 25, 0, 0, 30, tzinfo=BERLIN))
    one.run(timedelta(hours=6))
    other.run(timedelta(hours=6), changes=changes)

    assert other.fired == one.fired
    assert len(one.fired) == 6


def test_what_was_missed_while_nobody_led_is_made_up_for_once() -> None:
    beats = Beats(cron(minute="*/10"), START)
    beats.run(timedelta(minutes=11))
    beats.now += timedelta(hours=2)
    beats.change_leader()
    beats.tick()
    beats.tick()

    assert beats.fired == ["01. 00:10", "01. 02:11"]


def test_a_firing_that_the_old_leader_noted_goes_out_once_under_its_id() -> None:
    """Whether the old one sent it nobody can know; a job of the same id exists once."""
    beats = Beats(every(minutes=20), START)
    beats.run(timedelta(minutes=19))
    beats.broken = True
    beats.now += timedelta(minutes=1)
    with pytest.raises(StreamUnavailable):
        beats.tick()
    noted = beats.world.firings.known["e"].task_id
    beats.broken = False
    beats.now += timedelta(minutes=1)
    beats.change_leader()
    beats.run(timedelta(minutes=20))

    assert beats.fired == ["01. 00:22", "01. 00:40"]
    assert beats.sent[0][1] == noted


def test_an_unsent_firing_is_not_made_up_for_beside_the_next_one() -> None:
    """When the entry is due again, that firing stands for both."""
    beats = Beats(every(minutes=20), START)
    beats.run(timedelta(minutes=19))
    beats.broken = True
    beats.now += timedelta(minutes=1)
    with pytest.raises(StreamUnavailable):
        beats.tick()
    beats.broken = False
    beats.now += timedelta(hours=1)
    beats.change_leader()
    beats.tick()
    beats.tick()

    assert beats.fired == ["01. 01:20"]


def test_long_names_of_entries_are_told_apart() -> None:
    names = ["x" * 300 + end for end in ("a", "b")]

    assert len({key(name) for name in names}) == 2
    assert max(len(key(name)) for name in names) <= LONGEST_NAME
    assert key("short") == "short"


def test_the_id_of_a_firing_follows_from_the_instant_of_the_one_before_in_any_zone() -> None:
    ids = []
    for zone in (UTC, BERLIN):
        beats = Beats(every(minutes=20), START)
        beats.schedule["e"].last_run_at = (START - timedelta(minutes=20)).astimezone(zone)
        beats.tick()
        ids.append(beats.sent[0][1])

    assert ids[0] == ids[1]
