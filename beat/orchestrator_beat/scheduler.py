"""``LeaderScheduler``: several ``celery beat`` processes stand by, one leads.

    celery -A orchestrator_tasks.app beat -S orchestrator_beat.scheduler:LeaderScheduler

The leader runs the sweeps, in a thread of its own, and fires the stock ``beat_schedule``. Nothing that a tick meets
ends the process: Celery's beat does not outlive an exception from its scheduler.
"""

import logging
from typing import Any, Final

from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from celery.exceptions import ImproperlyConfigured
from kombu.exceptions import OperationalError

from orchestrator.errors import NotLeading, StoreUnavailable, StreamUnavailable, Unavailable
from orchestrator.services.lead import Leader
from orchestrator_beat.firings import Shooter

logger = logging.getLogger(__name__)

LONGEST_TICK: Final = 1.0
#: What keeps a task from being sent now, but not for ever.
PASSING: Final = (Unavailable, OperationalError, OSError)


class LeaderScheduler(Scheduler):
    """Celery's in-memory scheduler, which fires only while this process leads."""

    def __init__(self, app: Any, *args: Any, max_interval: float | None = None, **kwargs: Any) -> None:
        self._leader: Leader | None = None
        self._runtime: Any = None
        self._led_epoch: int | None = None  # the term for which this process knows what has fired
        super().__init__(app, *args, max_interval=min(max_interval or LONGEST_TICK, LONGEST_TICK), **kwargs)

    def setup_schedule(self) -> None:
        """Read the schedule and stand for leadership; not called when beat only wants to describe its scheduler."""
        open_runtime = getattr(self.app, "orchestrator_runtime", None)
        if open_runtime is None:
            raise ImproperlyConfigured("the Celery app is not an orchestrator's: app = install(Celery(...))")
        super().setup_schedule()
        self._runtime = open_runtime()
        self._shooter = Shooter(self._runtime.firings, self._send, self.app.timezone)
        self._leader = Leader(self._runtime)
        self._leader.start()

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Fire what is due if this process leads; return the seconds until the next tick, at most one."""
        try:
            epoch = self._epoch()
            if epoch is None:
                return LONGEST_TICK / 2
            self._shooter.fire_late(epoch=epoch)
            pause = super().tick(*args, **kwargs)
        except StoreUnavailable as error:
            logger.warning("the schedule waits for the database: %s", error)
            return LONGEST_TICK
        except Exception:
            logger.exception("a tick of the schedule failed")
            return LONGEST_TICK
        return float(min(pause, LONGEST_TICK))

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Note a firing and send the entry's task, unless the term has just ended."""
        leader = self._leader
        epoch = leader.epoch if leader is not None else None
        if epoch is None or epoch != self._led_epoch:
            logger.warning("%s is left to the next leader", entry.name)
            self._led_epoch = None  # this process has advanced the entry: what fired is to be read again
            return None
        if advance:
            self.reserve(entry)
        return self._shooter.fire(entry, self.schedule[entry.name].last_run_at, epoch=epoch)

    def close(self) -> None:
        """Hand leadership over and end."""
        if self._leader is not None:
            if self._leader.stop():
                self._runtime.close()
            else:
                logger.error("a sweep did not end in time; the term ends by itself")
            self._leader = None
        super().close()

    @property
    def info(self) -> str:
        """A line of beat's banner."""
        return "    . leader election in the database, sweeps by the leader"

    def _send(self, entry: ScheduleEntry) -> Any:
        try:
            return super().apply_async(entry, producer=self.producer, advance=False)
        except SchedulingError as error:
            if isinstance(error.__context__, PASSING):
                raise StreamUnavailable(str(error)) from error
            raise

    def _epoch(self) -> int | None:
        """Return the epoch if this process leads and knows what has fired before."""
        epoch = self._leader.epoch if self._leader is not None else None
        if epoch is None:
            self._led_epoch = None
        elif epoch != self._led_epoch:
            try:
                self._shooter.take_over(self.schedule, epoch=epoch)
            except NotLeading:
                return None
            self._heap = None  # made again from the schedule by the next tick
            self._led_epoch = epoch
        return epoch
