"""Runners of pools that go to sleep or wake up: a lease of another size takes the place of the one they have."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from orchestrator.domain.lease import PoolResize
from orchestrator.storage.endings import end_leases
from orchestrator.storage.engine import Database
from orchestrator.storage.granting import take_gpus
from orchestrator.storage.sql import Sql

#: A submit that grants a job to this lease reads it under a lock, so one of the two comes first.
HELD: Final = Sql(
    "SELECT id FROM orchestrator_leases WHERE id = :lease_id AND node = :node AND state = 'active'"
    " AND expires_at > {now} {for_update}"
)
IDLE: Final = Sql(
    "SELECT r.lease_id FROM worker_pool_runners r WHERE r.lease_id = :lease_id AND r.leaving IS NULL"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_attempts a WHERE a.lease_id = r.lease_id AND a.ended_at IS NULL)"
)
MOVE: Final = Sql("UPDATE worker_pool_runners SET lease_id = :new, asleep = :asleep WHERE lease_id = :lease_id")


def resize(
    database: Database, connection: Connection, node: str, resizes: Iterable[PoolResize], ttl: timedelta
) -> tuple[tuple[int, int | None], ...]:
    """Give runners of a host leases of another size; return each old lease with the new one.

    None: the runner keeps the old one, because it has a job, is to leave, or its GPU has no room for more.
    """
    return tuple((one.lease_id, _resize(database, connection, node, one, ttl)) for one in resizes)


def _resize(database: Database, connection: Connection, node: str, one: PoolResize, ttl: timedelta) -> int | None:
    named = {"lease_id": one.lease_id, "node": node}
    if database.run(connection, HELD, named).first() is None or database.run(connection, IDLE, named).first() is None:
        return None
    saved = connection.begin_nested()
    end_leases(database, connection, [one.lease_id], "released")
    lease_id = take_gpus(database, connection, node, one.grant, ttl)
    if lease_id is None:
        saved.rollback()  # nobody was told that the old one had ended
        return None
    saved.commit()
    database.run(connection, MOVE, named | {"new": lease_id, "asleep": int(one.asleep)})
    return lease_id
