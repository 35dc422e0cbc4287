"""Orders about queues and the whole installation, kept where claims and plans read them.

A claim refuses what is paused in the statement that takes the job, so an order holds from its commit on. What was on
its way is taken back afterwards, in transactions of their own: the queue's row and the waiting jobs are never locked
together, in whose order claims lock them the other way round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.control_ports import QueueOrders
from orchestrator.domain.policy import Limits, Policy, Values, limits_after, values_after
from orchestrator.errors import QueueNotFound, StaleVersion
from orchestrator.storage.engine import Database
from orchestrator.storage.placing import withdraw
from orchestrator.storage.rows import dump, instant
from orchestrator.storage.sql import Sql

#: Jobs that one transaction takes back.
WITHDRAW_BATCH: Final = 500

_COLUMNS: Final = "name, paused, paused_by, most_running, time_limit_s, version"
QUEUES: Final = Sql(f"SELECT {_COLUMNS} FROM orchestrator_queues ORDER BY name")  # noqa: S608 - a constant
QUEUE: Final = Sql(f"SELECT {_COLUMNS} FROM orchestrator_queues WHERE name = :name")  # noqa: S608 - a constant
QUEUE_FOR_UPDATE: Final = Sql(
    f"SELECT {_COLUMNS} FROM orchestrator_queues WHERE name = :name {{for_update}}"  # noqa: S608 - a constant
)
SET_PAUSED: Final = Sql(
    "UPDATE orchestrator_queues SET paused = :paused, paused_by = :by, version = version + 1 WHERE name = :name"
)
SET_LIMITS: Final = Sql(
    "UPDATE orchestrator_queues SET most_running = :most_running, time_limit_s = :time_limit_seconds,"
    " version = version + 1 WHERE name = :name"
)
EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, data) VALUES ({now}, :kind, :data)")
ON_THE_WAY: Final = Sql(
    "SELECT job_seq FROM orchestrator_ready WHERE publish_at IS NOT NULL AND (:queue IS NULL OR queue = :queue)"
    " AND job_seq > :after ORDER BY job_seq LIMIT :limit"
)
_POLICY: Final = "version, safe_mode, pool_idle_s, max_gpu_fraction, changed_by, changed_at"
POLICY: Final = Sql(f"SELECT {_POLICY} FROM orchestrator_policy WHERE id = 1")  # noqa: S608 - a constant
POLICY_FOR_UPDATE: Final = Sql(
    f"SELECT {_POLICY} FROM orchestrator_policy WHERE id = 1 {{for_update}}"  # noqa: S608 - a constant
)
_FIRST: Final = "VALUES (1, 0, :safe_mode, :pool_idle_seconds, :max_gpu_memory_fraction, :by, {now})"
FIRST_POLICY: Final = Sql(
    f"INSERT INTO orchestrator_policy (id, {_POLICY}) {_FIRST} ON CONFLICT DO NOTHING",
    mysql=f"INSERT IGNORE INTO orchestrator_policy (id, {_POLICY}) {_FIRST}",
)
SET_POLICY: Final = Sql(
    "UPDATE orchestrator_policy SET version = version + 1, safe_mode = :safe_mode, pool_idle_s = :pool_idle_seconds,"
    " max_gpu_fraction = :max_gpu_memory_fraction, changed_by = :by, changed_at = {now} WHERE id = 1"
)


class SqlQueueControl:
    """``QueueControl`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list_queues(self) -> Sequence[QueueOrders]:
        """Return every queue."""
        return [_queue(row) for row in self._database.read(lambda c: self._database.run(c, QUEUES).all())]

    def get(self, name: str) -> QueueOrders:
        """Return a queue."""
        row = self._database.read(lambda c: self._database.run(c, QUEUE, {"name": name}).first())
        if row is None:
            raise QueueNotFound(name)
        return _queue(row)

    def set_paused(self, name: str, *, paused: bool, by: str) -> tuple[QueueOrders, int]:
        """Pause or resume a queue; see the port."""

        def change(connection: Connection) -> QueueOrders:
            queue = self._locked(connection, name)
            if queue.paused == paused:
                return queue
            values = {"name": name, "paused": int(paused), "by": by if paused else None}
            self._database.run(connection, SET_PAUSED, values)
            _note(self._database, connection, "queue_pause" if paused else "queue_resume", queue=name, by=by)
            return self._locked(connection, name)

        queue = self._database.transaction(change)
        return queue, take_back(self._database, name) if paused else 0

    def set_limits(self, name: str, changes: Mapping[str, object], *, by: str, version: int | None) -> QueueOrders:
        """Change a queue's limits; see the port."""

        def change(connection: Connection) -> QueueOrders:
            queue = self._locked(connection, name)
            _refuse_stale(version, queue.version)
            limits = limits_after(queue.limits, changes)
            if limits == queue.limits:
                return queue
            self._database.run(connection, SET_LIMITS, {"name": name, **asdict(limits)})
            _note(self._database, connection, "queue_set", queue=name, by=by, **changes)
            return self._locked(connection, name)

        return self._database.transaction(change)

    def _locked(self, connection: Connection, name: str) -> QueueOrders:
        row = self._database.run(connection, QUEUE_FOR_UPDATE, {"name": name}).first()
        if row is None:
            raise QueueNotFound(name)
        return _queue(row)


class SqlPolicyStore:
    """``PolicyStore`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self) -> Policy:
        """Return what is in force."""
        return _policy(self._database.read(lambda c: self._database.run(c, POLICY).first()))

    def change(self, changes: Mapping[str, object], *, by: str, version: int | None) -> Policy:
        """Change values; see the port."""

        def change(connection: Connection) -> Policy:
            run = self._database.run
            run(connection, FIRST_POLICY, {"by": by, **asdict(Values())})  # a row to lock
            policy = _policy(run(connection, POLICY_FOR_UPDATE).first())
            _refuse_stale(version, policy.version)
            values = values_after(policy.values, changes)
            if values == policy.values:
                return policy
            run(connection, SET_POLICY, {"by": by, **asdict(values)})
            _note(self._database, connection, "policy_set", by=by, **changes)
            return _policy(run(connection, POLICY_FOR_UPDATE).first())

        policy = self._database.transaction(change)
        if policy.values.safe_mode:
            take_back(self._database, None)
        return policy


def take_back(database: Database, queue: str | None) -> int:
    """Withdraw what is on its way to hosts, of one queue or all; return how much that was."""
    taken, after = 0, 0
    while True:
        values = {"queue": queue, "after": after, "limit": WITHDRAW_BATCH}
        found = [*database.read(lambda c, values=values: database.run(c, ON_THE_WAY, values).scalars().all())]  # type: ignore[misc]
        if not found:
            return taken
        taken += len(database.transaction(lambda c, found=found: withdraw(database, c, found)))  # type: ignore[misc]
        after = found[-1]


def _refuse_stale(believed: int | None, actual: int) -> None:
    if believed is not None and believed != actual:
        raise StaleVersion(believed, actual)


def _note(database: Database, connection: Connection, kind: str, **data: Any) -> None:
    database.run(connection, EVENT, {"kind": kind, "data": dump(data)})


def _queue(row: Any) -> QueueOrders:
    limits = Limits(row.most_running, row.time_limit_s)
    return QueueOrders(row.name, bool(row.paused), row.paused_by, limits, row.version)


def _policy(row: Any) -> Policy:
    if row is None:
        return Policy()
    values = Values(bool(row.safe_mode), row.pool_idle_s, row.max_gpu_fraction)
    return Policy(values, row.version, row.changed_by if row.version else None, instant(row.changed_at))
