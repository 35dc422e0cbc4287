"""Leases without a job: their rows are those of all leases, and who holds them is in a table beside them."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from orchestrator.domain.adhoc import AdHocLease
from orchestrator.domain.job import LeaseMode
from orchestrator.domain.lease import LeaseGrant
from orchestrator.errors import IdempotencyConflict, LeaseLost, UnknownLease
from orchestrator.lease_ports import Holder
from orchestrator.storage.endings import end_leases
from orchestrator.storage.engine import Database
from orchestrator.storage.gpu_health import LONGEST_REASON
from orchestrator.storage.granting import take_gpus
from orchestrator.storage.rows import dump, instant, required_instant, storable
from orchestrator.storage.sql import Sql

OPEN_NODE: Final = Sql("SELECT 1 FROM orchestrator_nodes WHERE name = :node AND state = 'up' AND drain = 0 {for_share}")
INSERT_HOLDER: Final = Sql(
    "INSERT INTO orchestrator_lease_holders"
    " (lease_id, token_hash, name, tenant, holder, idempotency_key, ttl_s, request_digest, idle_told)"
    " VALUES (:lease_id, :token_hash, :name, :tenant, :holder, :key, :ttl, :digest, 0)"
)
OF_KEY: Final = Sql(
    "SELECT lease_id, ttl_s, request_digest FROM orchestrator_lease_holders"
    " WHERE tenant = :tenant AND idempotency_key = :key {for_update}"
)
REPLACE_TOKEN: Final = Sql("UPDATE orchestrator_lease_holders SET token_hash = :token_hash WHERE lease_id = :lease_id")
FORGET_KEY: Final = Sql("UPDATE orchestrator_lease_holders SET idempotency_key = NULL WHERE lease_id = :lease_id")
_COLUMNS: Final = (
    "SELECT l.id, l.node, l.mode, l.memory_mib, l.state, l.granted_at, l.heartbeat_at, l.expires_at, l.ended_at,"
    " h.name, h.tenant, h.holder, h.ttl_s, h.ready_at, h.refusal, h.busy_at FROM orchestrator_lease_holders h"
    " JOIN orchestrator_leases l ON l.id = h.lease_id"
)
_OF_TENANT: Final = "(:tenant IS NULL OR h.tenant = :tenant)"
OF_TOKEN: Final = Sql(f"{_COLUMNS} WHERE h.token_hash = :token_hash AND {_OF_TENANT}")
OF_ID: Final = Sql(f"{_COLUMNS} WHERE h.lease_id = :lease_id AND {_OF_TENANT}")
LIST: Final = Sql(
    f"{_COLUMNS} WHERE {_OF_TENANT} AND (:active = 0 OR l.state = 'active')"
    " AND (:before IS NULL OR h.lease_id < :before) ORDER BY h.lease_id DESC LIMIT :limit"
)
GPUS: Final = Sql(
    "SELECT lease_id, gpu_uuid FROM orchestrator_lease_gpus WHERE lease_id IN :ids ORDER BY gpu_uuid", "ids"
)
RENEW: Final = Sql(
    "UPDATE orchestrator_leases SET expires_at = {now_plus:ttl}, heartbeat_at = {now}, renewals = renewals + 1"
    " WHERE id = :lease_id AND state = 'active' AND expires_at > {now}"
)
CONFIRM: Final = Sql(
    "UPDATE orchestrator_lease_holders SET ready_at = CASE WHEN :refusal IS NULL THEN {now} END, refusal = :refusal"
    " WHERE lease_id = :lease_id AND ready_at IS NULL AND refusal IS NULL"
)
EVENT: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, node, lease_id, data) VALUES ({now}, :kind, :node, :lease_id, :data)"
)


class SqlAdHocLeases:
    """``AdHocLeases`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def grant(self, node: str, grant: LeaseGrant, holder: Holder, *, ttl: timedelta) -> AdHocLease | None:
        """Take every GPU of the grant, or none; see the port."""
        run = self._database.run

        def take(connection: Connection) -> AdHocLease | None:
            if (earlier := self._earlier(connection, holder)) is not None:
                return earlier
            if run(connection, OPEN_NODE, {"node": node}).first() is None:
                return None
            lease_id = take_gpus(self._database, connection, node, grant, ttl)
            if lease_id is None:
                return None
            values = {"lease_id": lease_id, "token_hash": holder.token_hash, "name": holder.name}
            values |= {"tenant": holder.tenant, "holder": holder.holder, "key": holder.key}
            values["digest"] = holder.digest
            run(connection, INSERT_HOLDER, values | {"ttl": ttl.total_seconds()})
            self._note(connection, "lease_grant", node, lease_id, by=holder.holder)
            return self._one(connection, OF_ID, {"lease_id": lease_id, "tenant": None})

        try:
            return self._database.transaction(take)
        except IntegrityError:  # the same key, at the same time: the other one was first
            return self.again(holder)

    def again(self, holder: Holder) -> AdHocLease | None:
        """Return the live lease of the holder's key; see the port."""
        if holder.key is None:
            return None
        return self._database.transaction(lambda connection: self._earlier(connection, holder))

    def find(self, token_hash: str) -> AdHocLease:
        """Return the lease of this token; see the port."""
        return self._database.read(lambda c: self._one(c, OF_TOKEN, {"token_hash": token_hash, "tenant": None}))

    def confirm(self, lease_id: int, refusal: str | None) -> None:
        """Write what its host says of a lease; see the port."""
        words = storable(refusal)
        values = {"lease_id": lease_id, "refusal": None if words is None else words[:LONGEST_REASON]}
        self._database.transaction(lambda c: self._database.run(c, CONFIRM, values).rowcount)

    def renew(self, token_hash: str, *, tenant: str | None = None) -> AdHocLease:
        """Extend a live lease; see the port."""

        def extend(connection: Connection) -> AdHocLease:
            lease = self._one(connection, OF_TOKEN, {"token_hash": token_hash, "tenant": tenant})
            values = {"lease_id": lease.id, "ttl": lease.ttl_seconds}
            if not self._database.run(connection, RENEW, values).rowcount:
                raise LeaseLost(lease.id)
            return self._one(connection, OF_ID, {"lease_id": lease.id, "tenant": None})

        return self._database.transaction(extend)

    def release(
        self, token_hash: str | None, *, lease_id: int | None = None, tenant: str | None = None, by: str
    ) -> AdHocLease:
        """End a lease; see the port."""

        def end(connection: Connection) -> AdHocLease:
            by_token = token_hash is not None
            values: dict[str, Any] = {"token_hash": token_hash} if by_token else {"lease_id": lease_id}
            lease = self._one(connection, OF_TOKEN if by_token else OF_ID, values | {"tenant": tenant})
            if end_leases(self._database, connection, [lease.id], "released"):
                self._note(connection, "lease_release", lease.node, lease.id, by=by)
            return self._one(connection, OF_ID, {"lease_id": lease.id, "tenant": None})

        return self._database.transaction(end)

    def leases(
        self, *, tenant: str | None = None, active: bool = True, before: int | None = None, limit: int = 100
    ) -> Sequence[AdHocLease]:
        """Return leases, newest first."""
        values = {"tenant": tenant, "active": int(active), "before": before, "limit": limit}
        return self._database.read(lambda c: self._found(c, LIST, values))

    def _earlier(self, connection: Connection, holder: Holder) -> AdHocLease | None:
        """Give the holder the live lease of its key; forget a key whose lease has ended."""
        if holder.key is None:
            return None
        row = self._database.run(connection, OF_KEY, {"tenant": holder.tenant, "key": holder.key}).first()
        if row is None:
            return None
        values = {"lease_id": row.lease_id, "ttl": float(row.ttl_s)}
        if not self._database.run(connection, RENEW, values).rowcount:
            self._database.run(connection, FORGET_KEY, {"lease_id": row.lease_id})
            return None
        if row.request_digest not in (None, holder.digest):
            raise IdempotencyConflict(holder.key, None)
        self._database.run(connection, REPLACE_TOKEN, {"lease_id": row.lease_id, "token_hash": holder.token_hash})
        return self._one(connection, OF_ID, {"lease_id": row.lease_id, "tenant": None})

    def _one(self, connection: Connection, statement: Sql, values: dict[str, Any]) -> AdHocLease:
        found = self._found(connection, statement, values)
        if not found:
            raise UnknownLease("that token" if "token_hash" in values else str(values["lease_id"]))
        return found[0]

    def _found(self, connection: Connection, statement: Sql, values: dict[str, Any]) -> list[AdHocLease]:
        rows = self._database.run(connection, statement, values).all()
        gpus: dict[int, list[str]] = {row.id: [] for row in rows}
        if gpus:
            for row in self._database.run(connection, GPUS, {"ids": list(gpus)}):
                gpus[row.lease_id].append(row.gpu_uuid)
        return [_lease(row, tuple(gpus[row.id])) for row in rows]

    def _note(self, connection: Connection, kind: str, node: str, lease_id: int, *, by: str) -> None:
        values = {"kind": kind, "node": node, "lease_id": lease_id, "data": dump({"by": by})}
        self._database.run(connection, EVENT, values)


def _lease(row: Any, gpus: tuple[str, ...]) -> AdHocLease:
    return AdHocLease(
        id=row.id,
        node=row.node,
        gpus=gpus,
        mode=LeaseMode(row.mode),
        memory_mib=row.memory_mib,
        state=row.state,
        name=row.name,
        tenant=row.tenant,
        holder=row.holder,
        ttl_seconds=float(row.ttl_s),
        granted_at=required_instant(row.granted_at),
        heartbeat_at=required_instant(row.heartbeat_at),
        expires_at=required_instant(row.expires_at),
        ended_at=instant(row.ended_at),
        ready_at=instant(row.ready_at),
        refusal=row.refusal,
        busy_at=instant(row.busy_at),
    )
