"""Totals that only grow: each is raised in the transaction that does what it counts, and outlives the history."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.metric_ports import ActiveLeases, Total
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import required_instant
from orchestrator.storage.sql import Sql

_INSERT: Final = "INSERT INTO orchestrator_totals (name, label, total) VALUES (:name, :label, :count)"
RAISE: Final = Sql(
    _INSERT + " ON CONFLICT (name, label) DO UPDATE SET total = total + excluded.total",
    mysql=_INSERT + " ON DUPLICATE KEY UPDATE total = total + VALUES(total)",
)
TOTALS: Final = Sql("SELECT name, label, total FROM orchestrator_totals ORDER BY name, label")
#: By who holds them, and what of GPUs. A worker pool's runner loads under the lease of a job, until it has joined.
ACTIVE_LEASES: Final = Sql(
    "SELECT kind, mode, COUNT(*) AS leases, MIN(granted_at) AS granted_at, MIN(heartbeat_at) AS heartbeat_at,"
    " {now} AS now FROM (SELECT l.granted_at, l.heartbeat_at,"
    " CASE WHEN EXISTS (SELECT 1 FROM orchestrator_lease_gpus g WHERE g.lease_id = l.id) THEN l.mode ELSE 'none' END"
    " AS mode,"
    " CASE WHEN h.lease_id IS NOT NULL THEN 'adhoc' WHEN r.lease_id IS NOT NULL THEN 'pool' ELSE 'job' END AS kind"
    " FROM orchestrator_leases l LEFT JOIN orchestrator_lease_holders h ON h.lease_id = l.id"
    " LEFT JOIN worker_pool_runners r ON r.lease_id = l.id WHERE l.state = 'active') active_leases"
    " GROUP BY kind, mode ORDER BY kind, mode"
)
LETTERS: Final = Sql("SELECT queue, COUNT(*) AS letters FROM orchestrator_dead_letters GROUP BY queue")


class SqlTallies:
    """``Tallies`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def totals(self) -> Mapping[Total, Mapping[str, int]]:
        """Return every total, by what is told apart."""
        found: defaultdict[Total, dict[str, int]] = defaultdict(dict)
        known = {total.value for total in Total}
        for row in self._database.look(TOTALS, {}):
            if row.name in known:  # a newer release may count more
                found[Total(row.name)][row.label] = row.total
        return found

    def active_leases(self) -> Sequence[ActiveLeases]:
        """Return the leases that live, by kind and mode."""
        return [
            ActiveLeases(
                kind=row.kind,
                mode=row.mode,
                count=row.leases,
                oldest_seconds=_seconds_since(row.granted_at, row.now),
                silent_seconds=_seconds_since(row.heartbeat_at, row.now),
            )
            for row in self._database.look(ACTIVE_LEASES, {})
        ]

    def dead_letters(self) -> Mapping[str, int]:
        """Return how many wait for a person, by queue."""
        return {row.queue: row.letters for row in self._database.look(LETTERS, {})}


def raise_total(
    database: Database, connection: Connection, total: Total, count: int, *, label: str | None = ""
) -> None:
    """Count something in the transaction that does it, as late in it as can be: others may wait for the row."""
    if count:
        database.run(connection, RAISE, {"name": total.value, "label": label or "", "count": count})


def _seconds_since(since: Any, now: Any) -> float:
    return (required_instant(now) - required_instant(since)).total_seconds()
