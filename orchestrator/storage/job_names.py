"""How a request names the job that it asks for, and the jobs that have such names already."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, select

from orchestrator.domain.job import NewJob
from orchestrator.errors import IdempotencyConflict
from orchestrator.storage import tables
from orchestrator.storage.rows import request_hash

#: (id, None), or (tenant, idempotency key).
Name: TypeAlias = tuple[str, str | None]


def names_of(job: NewJob) -> tuple[Name, ...]:
    """Return the names, the key first: it is the one that the caller chose on purpose."""
    by_id = (job.id, None)
    return (by_id,) if job.idempotency_key is None else ((job.tenant, job.idempotency_key), by_id)


def refuse_other_request(job: NewJob, payload: str, existing_id: str, existing_hash: str) -> None:
    """Refuse a key that names a job which another request asked for."""
    if existing_id != job.id and existing_hash != request_hash(job, payload):
        raise IdempotencyConflict(job.idempotency_key or "", existing_id)


def stored_by_name(connection: Connection, jobs: Sequence[NewJob]) -> dict[Name, Any]:
    """Return the stored jobs that have the id, or the key, of one of these."""
    columns = tables.jobs.c
    keys: dict[str, set[str]] = {}
    for job in jobs:
        if job.idempotency_key is not None:
            keys.setdefault(job.tenant, set()).add(job.idempotency_key)
    same: ColumnElement[bool] = columns.id.in_(sorted({job.id for job in jobs}))
    for tenant, wanted in keys.items():
        same |= (columns.tenant == tenant) & columns.idempotency_key.in_(sorted(wanted))
    query = select(
        columns.id, columns.seq, columns.state, columns.request_hash, columns.tenant, columns.idempotency_key
    ).where(same)
    named: dict[Name, Any] = {}
    for row in connection.execute(query):
        named[row.id, None] = row
        if row.idempotency_key is not None:
            named[row.tenant, row.idempotency_key] = row
    return named
