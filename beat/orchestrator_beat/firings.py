"""The firings of one leader: each is noted in the database before its task is sent, under the leader's epoch.

So what has fired outlives every beat process, a leader that was replaced without knowing cannot fire, and one that dies
between the note and the send leaves a note that its successor sends, under the same id.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any, Final
from uuid import UUID, uuid5

from celery.beat import ScheduleEntry

from orchestrator.errors import NotLeading, StoreUnavailable, Unavailable
from orchestrator.schedule_ports import Firings

logger = logging.getLogger(__name__)

_NAMESPACE: Final = UUID("0f6d7f1e-5d0c-5c0b-9a55-6f1f0d1d8a11")
#: Of the table's column; a longer name of an entry is cut, and told apart by its hash.
LONGEST_NAME: Final = 191


class Shooter:
    """Sends what fires, once for each firing, as long as one term lasts."""

    def __init__(self, firings: Firings, send: Callable[[ScheduleEntry], Any], timezone: tzinfo) -> None:
        """Make it.

        Args:
            firings: Where firings are noted.
            send: Sends an entry's task; raises ``Unavailable`` when it could not be sent now.
            timezone: Of the app: schedules such as crontab reckon in it.
        """
        self._firings, self._send, self._timezone = firings, send, timezone
        self._unsent: dict[str, tuple[ScheduleEntry, datetime]] = {}

    def take_over(self, schedule: Mapping[str, ScheduleEntry], *, epoch: int) -> None:
        """Go on from where the leader before this one was; note where entries begin that have never fired.

        Raises:
            NotLeading: If the term is over.
            StoreUnavailable: If the database does not answer; nothing may fire before this has succeeded.
        """
        self._unsent.clear()
        known = self._firings.load()
        self._firings.begin(
            {key(name): entry.last_run_at for name, entry in schedule.items() if key(name) not in known}, epoch=epoch
        )
        for name, entry in schedule.items():
            firing = known.get(key(name))
            if firing is None:
                continue
            entry.last_run_at = firing.fired_at.astimezone(self._timezone)
            if not firing.is_sent and firing.task_id is not None and not _is_due(entry):
                # One that is due again stands for the one before: what was missed is made up for once.
                self._unsent[name] = (_with_id(entry, firing.task_id), firing.fired_at)

    def fire(self, entry: ScheduleEntry, fired_at: datetime, *, epoch: int) -> Any:
        """Note and send an entry; what cannot be now is tried again by ``fire_late``, until the entry fires anew.

        Args:
            entry: As it was before this firing, which its id follows from: leaders that overlap ask for the same job.
            fired_at: The instant of the firing.
            epoch: Of the leader.
        """
        before = entry.last_run_at.astimezone(UTC).isoformat(timespec="microseconds")
        named = _with_id(entry, str(uuid5(_NAMESPACE, f"{entry.name}|{before}")))
        self._unsent[entry.name] = (named, fired_at)
        return self._try(entry.name, epoch)

    def fire_late(self, *, epoch: int) -> None:
        """Try again to send what could not be sent."""
        for name in list(self._unsent):
            try:
                self._try(name, epoch)
            except Unavailable as error:
                logger.warning("%s is not sent yet: %s", name, error)

    def _try(self, name: str, epoch: int) -> Any:
        entry, fired_at = self._unsent[name]
        task_id = entry.options["task_id"]
        try:
            self._firings.fire(key(name), fired_at, task_id, epoch=epoch)
        except NotLeading:
            del self._unsent[name]
            logger.warning("%s is left to the next leader", name)
            return None
        try:
            result = self._send(entry)
        except Unavailable:
            raise
        except Exception:
            self._done(name, task_id)  # it would fail again, for ever; Celery's own beat goes on to the next firing too
            raise
        self._done(name, task_id)
        return result

    def _done(self, name: str, task_id: str) -> None:
        del self._unsent[name]
        try:
            self._firings.sent(key(name), task_id)
        except StoreUnavailable as error:
            logger.warning("%s was sent; a new leader may send it again under the same id: %s", name, error)


def key(name: str) -> str:
    """Return the name under which an entry's firings are noted."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 37]}-{uuid5(_NAMESPACE, name)}"


def _with_id(entry: ScheduleEntry, task_id: str) -> ScheduleEntry:
    """Return a copy: the next firing of the entry itself gets another id."""
    named = copy.copy(entry)
    named.options = {"task_id": task_id} | entry.options
    return named


def _is_due(entry: ScheduleEntry) -> bool:
    return bool(entry.is_due()[0])
