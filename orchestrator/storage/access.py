"""Tokens, and the audit of what was done with them."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError

from orchestrator.domain.access import AuditEntry, Role, Token
from orchestrator.errors import NameTaken
from orchestrator.storage import tables
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import instant, required_instant
from orchestrator.storage.sql import Sql

_INSERT: Final = (
    "INSERT INTO orchestrator_tokens (id, name, hash, role, tenant, requests_per_minute, created_by, created_at,"
    " expires_at) VALUES (:id, :name, :hash, :role, :tenant, :requests_per_minute, :created_by, {now}, "
)
INSERT_TOKEN: Final = Sql(_INSERT + "NULL)")
INSERT_MORTAL_TOKEN: Final = Sql(_INSERT + "{now_plus:life})")
LIVE_TOKEN: Final = Sql(
    "SELECT t.*, (last_used_at IS NULL OR last_used_at < {now_minus:age}) AS unused"
    " FROM orchestrator_tokens t WHERE id = :id AND revoked_at IS NULL"
    " AND (expires_at IS NULL OR expires_at > {now})"
)
LIVE_IDS: Final = Sql(
    "SELECT id FROM orchestrator_tokens WHERE id IN :ids AND revoked_at IS NULL"
    " AND (expires_at IS NULL OR expires_at > {now})",
    "ids",
)
TOUCH_TOKEN: Final = Sql(
    "UPDATE orchestrator_tokens SET last_used_at = {now} WHERE id = :id"
    " AND (last_used_at IS NULL OR last_used_at < {now_minus:age})"
)
REVOKE_TOKEN: Final = Sql("UPDATE orchestrator_tokens SET revoked_at = {now} WHERE name = :name AND revoked_at IS NULL")
INSERT_AUDIT: Final = Sql(
    "INSERT INTO orchestrator_audit (at, request_id, actor, role, tenant, action, target, outcome)"
    " VALUES ({now}, :request_id, :actor, :role, :tenant, :action, :target, :outcome)"
)
LAST_USED_SECONDS: Final = 60.0


class SqlAccessStore:
    """``AccessStore`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_token(
        self,
        *,
        id: str,
        name: str,
        hash: str,
        role: Role,
        tenant: str | None,
        requests_per_minute: int | None,
        life: timedelta | None,
        audit: AuditEntry,
    ) -> Token:
        """Store a token and the line about it."""
        row: dict[str, Any] = {"id": id, "name": name, "hash": hash, "role": role.value, "tenant": tenant}
        row |= {"requests_per_minute": requests_per_minute, "created_by": audit.actor}
        if life is not None:
            row["life"] = life.total_seconds()

        def create(connection: Connection) -> Any:
            self._database.run(connection, INSERT_TOKEN if life is None else INSERT_MORTAL_TOKEN, row)
            self._database.run(connection, INSERT_AUDIT, _audit_row(audit))
            return connection.execute(select(tables.tokens).where(tables.tokens.c.id == id)).mappings().one()

        try:
            return _token(self._database.transaction(create))
        except IntegrityError as error:
            raise NameTaken(name) from error

    def live_token(self, id: str) -> Token | None:
        """Return a token that is neither revoked nor expired by the database's clock, and note its use."""
        values = {"id": id, "age": LAST_USED_SECONDS}
        row = self._database.read(lambda c: self._database.run(c, LIVE_TOKEN, values).mappings().first())
        if row is None:
            return None
        if row["unused"]:
            self._database.transaction(lambda c: self._database.run(c, TOUCH_TOKEN, values).rowcount)
        return _token(row)

    def live_ids(self, ids: Collection[str]) -> Collection[str]:
        """Return which of these tokens are neither revoked nor expired by the database's clock."""
        rows = self._database.read(lambda c: self._database.run(c, LIVE_IDS, {"ids": list(ids)}).scalars().all())
        return frozenset(rows)

    def tokens(self) -> Sequence[Token]:
        """Return every token by name."""
        query = select(tables.tokens).order_by(tables.tokens.c.name)
        return [_token(row) for row in self._database.read(lambda c: c.execute(query).mappings().all())]

    def revoke_token(self, name: str, *, audit: AuditEntry) -> bool:
        """End a token, with the line about it."""

        def revoke(connection: Connection) -> bool:
            ended = bool(self._database.run(connection, REVOKE_TOKEN, {"name": name}).rowcount)
            if ended:
                self._database.run(connection, INSERT_AUDIT, _audit_row(audit))
            return ended

        return self._database.transaction(revoke)

    def note(self, entry: AuditEntry) -> None:
        """Append to the audit."""
        self._database.transaction(lambda c: self._database.run(c, INSERT_AUDIT, _audit_row(entry)).rowcount)

    def audit(self, *, before_seq: int | None, limit: int) -> Sequence[AuditEntry]:
        """Return what was done, newest first."""
        columns = tables.audit.c
        query = select(tables.audit).order_by(columns.seq.desc()).limit(limit)
        if before_seq is not None:
            query = query.where(columns.seq < before_seq)
        rows = self._database.read(lambda c: c.execute(query).mappings().all())
        return [AuditEntry(**{**row, "at": required_instant(row["at"])}) for row in rows]


def _audit_row(entry: AuditEntry) -> dict[str, Any]:
    return {
        "request_id": entry.request_id,
        "actor": entry.actor,
        "role": entry.role,
        "tenant": entry.tenant,
        "action": entry.action[:128],
        "target": entry.target[:512],
        "outcome": entry.outcome,
    }


def _token(row: Any) -> Token:
    return Token(
        id=row["id"],
        name=row["name"],
        role=Role(row["role"]),
        tenant=row["tenant"],
        requests_per_minute=row["requests_per_minute"],
        created_by=row["created_by"],
        created_at=required_instant(row["created_at"]),
        expires_at=instant(row["expires_at"]),
        revoked_at=instant(row["revoked_at"]),
        last_used_at=instant(row["last_used_at"]),
        hash=row["hash"],
    )
