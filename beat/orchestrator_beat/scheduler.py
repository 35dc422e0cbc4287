"""``LeaderScheduler``: several ``celery beat`` processes stand by, one leads.

    celery -A orchestrator_tasks.app beat -S orchestrator_beat.scheduler:LeaderScheduler

The leader runs the sweeps, in a thread of its own, and fires the stock ``beat_schedule``. Nothing that a tick meets
ends the process: Celery's beat does not outlive an exception from its scheduler.
"""

import copy
import logging
import time
from typing import Any, Final
from uuid import UUID, uuid5

from celery.beat import ScheduleEntry, Scheduler
from celery.exceptions import ImproperlyConfigured

from orchestrator.services.lead import Leader
from orchestrator_beat.firings import Firings

logger = logging.getLogger(__name__)

LONGEST_TICK: Final = 1.0
#: A standby looks so often when the leader fired last.
STANDBY_LOOK: Final = 5.0
_NAMESPACE: Final = UUID("0f6d7f1e-5d0c-5c0b-9a55-6f1f0d1d8a11")


class LeaderScheduler(Scheduler):
    """Celery's in-memory scheduler, which fires only while this process leads."""

    def __init__(self, app: Any, *args: Any, max_interval: float | None = None, **kwargs: Any) -> None:
        self._leader: Leader | None = None
        self._runtime: Any = None
        self._led_epoch: int | None = None
        self._looked_at = float("-inf")
        super().__init__(app, *args, max_interval=min(max_interval or LONGEST_TICK, LONGEST_TICK), **kwargs)

    def setup_schedule(self) -> None:
        """Read the schedule and stand for leadership; not called when beat only wants to describe its scheduler."""
        open_runtime = getattr(self.app, "orchestrator_runtime", None)
        if open_runtime is None:
            raise ImproperlyConfigured("the Celery app is not an orchestrator's: app = install(Celery(...))")
        super().setup_schedule()
        self._firings = Firings(self.app.backend)
        self._runtime = open_runtime()
        self._leader = Leader(self._runtime)
        self._leader.start()

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Fire what is due if this process leads; return the seconds until the next tick, at most one."""
        try:
            if not self._is_leading():
                return LONGEST_TICK / 2
            pause = super().tick(*args, **kwargs)
        except Exception:
            logger.exception("a tick of the schedule failed")
            return LONGEST_TICK
        return float(min(pause, LONGEST_TICK))

    def apply_async(self, entry: ScheduleEntry, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send an entry's task, unless the term has just ended.

        Its id follows from the entry and the firing before this one, so two leaders that overlap ask for the same job.
        """
        leader = self._leader
        if leader is None or not leader.leading:
            logger.warning("%s is left to the next leader", entry.name)
            return None
        if advance:
            self.reserve(entry)
        self._firings.note(entry.name, self.schedule[entry.name].last_run_at)
        task_id = str(uuid5(_NAMESPACE, f"{entry.name}|{entry.last_run_at.isoformat()}"))
        fired = copy.copy(entry)  # not the entry itself: the next firing gets another id
        fired.options = {"task_id": task_id} | entry.options
        return super().apply_async(fired, producer=producer, advance=False, **kwargs)

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

    def _is_leading(self) -> bool:
        epoch = self._leader.epoch if self._leader is not None else None
        begins = epoch is not None and epoch != self._led_epoch
        if begins or (epoch is None and time.monotonic() - self._looked_at > STANDBY_LOOK):
            self._looked_at = time.monotonic()
            self._take_over_firings(begins=begins)
        self._led_epoch = epoch
        return epoch is not None

    def _take_over_firings(self, *, begins: bool) -> None:
        """Go on from where the leader before this one was; say where the entries begin that it did not know."""
        fired = self._firings.load()
        for name, entry in self.schedule.items():
            if name in fired:
                entry.last_run_at = max(fired[name], entry.last_run_at) if not begins else fired[name]
            elif begins:
                self._firings.note(name, entry.last_run_at)
        self._heap = None  # made again from the schedule by the next tick
