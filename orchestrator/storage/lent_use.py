"""Whether the GPUs of leases without a job are at work; nobody else looks, as no runner of ours is on them."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump
from orchestrator.storage.sql import Sql


@dataclass(frozen=True, slots=True)
class LentUsePolicy:
    """When a lent GPU does nothing, and when that is told."""

    percent: int = 0  # utilization up to which it does nothing
    warn_seconds: float = 0.0  # after so long of it there is an event; 0: never


UNTOLD: Final = LentUsePolicy()
#: A GPU whose driver does not tell its utilization counts as busy; so do all of a lease if one of them works.
LENT: Final = Sql(
    "SELECT h.lease_id, h.holder, h.idle_told,"
    " MAX(CASE WHEN g.utilization IS NULL OR g.utilization > :percent THEN 1 ELSE 0 END) AS busy,"
    " MAX(CASE WHEN COALESCE(h.busy_at, h.ready_at) <= {now_minus:warn} THEN 1 ELSE 0 END) AS overdue"
    " FROM orchestrator_lease_holders h JOIN orchestrator_leases l ON l.id = h.lease_id"
    " JOIN orchestrator_lease_gpus c ON c.lease_id = l.id JOIN orchestrator_gpus g ON g.uuid = c.gpu_uuid"
    " WHERE l.node = :node AND l.state = 'active' AND h.ready_at IS NOT NULL"
    " GROUP BY h.lease_id, h.holder, h.idle_told ORDER BY h.lease_id"
)
BUSY: Final = Sql("UPDATE orchestrator_lease_holders SET busy_at = {now}, idle_told = 0 WHERE lease_id IN :ids", "ids")
TOLD: Final = Sql("UPDATE orchestrator_lease_holders SET idle_told = 1 WHERE lease_id = :lease_id")
IDLE_EVENT: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, node, lease_id, data)"
    " VALUES ({now}, 'lease_idle', :node, :lease_id, :data)"
)


def note_lent_use(database: Database, connection: Connection, node: str, policy: LentUsePolicy) -> None:
    """Take in what a host has just told of its GPUs: since when each lease without a job there does nothing."""
    rows = database.run(connection, LENT, {"node": node, "percent": policy.percent, "warn": policy.warn_seconds}).all()
    busy = [row.lease_id for row in rows if row.busy]
    if busy:
        database.run(connection, BUSY, {"ids": busy})
    for row in rows:
        if policy.warn_seconds and row.overdue and not (row.busy or row.idle_told):
            database.run(connection, TOLD, {"lease_id": row.lease_id})
            data = dump({"holder": row.holder, "idle_seconds": policy.warn_seconds})
            database.run(connection, IDLE_EVENT, {"node": node, "lease_id": row.lease_id, "data": data})
