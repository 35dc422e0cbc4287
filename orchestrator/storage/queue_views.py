"""Queues as plans see them: what is paused, and how many more jobs of a queue may start."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection

from orchestrator.scheduling.snapshot import QueueView
from orchestrator.storage.engine import Database
from orchestrator.storage.sql import Sql

QUEUES: Final = Sql(
    "SELECT name, paused, most_running, EXISTS (SELECT 1 FROM orchestrator_policy WHERE safe_mode = 1) AS safe"
    " FROM orchestrator_queues ORDER BY name"
)
#: By way of the leases: jobs have no index by state.
STARTED: Final = Sql(
    "SELECT j.queue AS queue, COUNT(*) AS jobs FROM orchestrator_leases l"
    " JOIN orchestrator_attempts a ON a.lease_id = l.id AND a.ended_at IS NULL"
    " JOIN orchestrator_jobs j ON j.seq = a.job_seq AND j.lease_id = l.id"
    " WHERE l.state = 'active' AND j.queue IN :names GROUP BY j.queue",
    "names",
)
ON_THE_WAY: Final = Sql(
    "SELECT queue, COUNT(*) AS jobs FROM orchestrator_ready WHERE queue IN :names AND publish_at IS NOT NULL"
    " GROUP BY queue",
    "names",
)


def queue_views(
    database: Database, connection: Connection, names: Collection[str] | None
) -> tuple[tuple[QueueView, ...], bool]:
    """Return the queues, and whether nothing at all may start.

    Args:
        database: The database.
        connection: To it.
        names: Those that one host takes jobs of; None: all, for the leader. A queue that may run so many jobs at once
            has no room for a host: only the leader, of which there is one, counts without racing another.
    """
    rows = [row for row in database.run(connection, QUEUES).all() if names is None or row.name in names]
    bounded = {row.name: row.most_running for row in rows if row.most_running is not None}
    room = bounded if names is None else dict.fromkeys(bounded, 0)
    if bounded and names is None:
        for statement in (STARTED, ON_THE_WAY):
            for row in database.run(connection, statement, {"names": sorted(bounded)}).all():
                room[row.queue] -= row.jobs
    left = {name: max(0, jobs) for name, jobs in room.items()}
    views = tuple(QueueView(row.name, bool(row.paused), row.most_running, left.get(row.name)) for row in rows)
    return views, any(row.safe for row in rows)
