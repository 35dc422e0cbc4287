"""Where new jobs begin: waiting, on their way to a host, or scheduled."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, select

from orchestrator.domain.job import JobState, NewJob
from orchestrator.errors import UnknownQueue
from orchestrator.storage import statements, tables
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import instant, stored_instant

#: Of a queue whose jobs do not start with their submit, in place of the number that may.
CLOSED: Final = -1


def open_slots_of(
    database: Database, connection: Connection, names: set[str]
) -> tuple[str | None, dict[str, int], dict[str, float | None]]:
    """Return the instant, how many jobs each queue takes at once, and the time limits of jobs that bring none.

    A queue takes none when something waits ahead; ``CLOSED`` if no job of it may start, or so many only: these
    the leader counts.
    """
    found = database.run(connection, statements.QUEUE_WINDOWS, {"names": sorted(names)}).all()
    slots = {row.name: 0 if row.waiting else max(0, row.window - row.admitted) for row in found}
    slots |= {row.name: CLOSED for row in found if row.paused or row.safe or row.most_running is not None}
    for name in names - slots.keys():
        known = connection.execute(select(tables.queues.c.name).order_by(tables.queues.c.name)).scalars().all()
        raise UnknownQueue(name, known)
    now = stored_instant(instant(found[0].now)) if found else None
    return now, slots, {row.name: row.time_limit_s for row in found}


def limited(row: Mapping[str, Any], limits: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the time limit of a job: its own, else its queue's, as long as its soft limit allows that."""
    own, of_queue, soft = row["time_limit_s"], limits[row["queue"]], row["soft_time_limit_s"]
    fits = own is None and of_queue is not None and (soft is None or soft < of_queue)
    return {"time_limit_s": of_queue if fits else own}


def open_queues(open_slots: Mapping[str, int]) -> frozenset[str]:
    return frozenset(name for name, slots in open_slots.items() if slots != CLOSED)


def first_state(job: NewJob, open_slots: dict[str, int], nodes: Mapping[str, str]) -> JobState:
    """Return where a job that waits for nothing begins; one that is admitted takes a slot, or has a runner waiting."""
    if job.run_at is not None:
        return JobState.SCHEDULED
    if job.id in nodes:
        return JobState.QUEUED
    if open_slots[job.queue] <= 0 or job.resources.wants is not None:  # a pass finds the host that suits
        return JobState.PENDING
    open_slots[job.queue] -= 1
    return JobState.QUEUED
