"""Rows to domain objects and back."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import RowMapping, select

from orchestrator.domain.entry import JobEntry
from orchestrator.domain.job import FailureClass, Job, JobKind, JobState, NewJob, Resources
from orchestrator.domain.policy import headroom_mib
from orchestrator.domain.retry import RetryOn
from orchestrator.domain.wants import wants_from, wants_text
from orchestrator.storage import tables

Row: TypeAlias = Mapping[str, Any] | RowMapping

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps makes one a call
#: Most text of rows that travel in one parameter. The driver's quoting may double it, and MariaDB's largest packet is
#: 16 MiB unless somebody raised it.
LARGEST_PART: Final = 4 << 20
#: What is text to Python but to no database: a NUL ends SQLite's strings, and half a surrogate pair has no UTF-8.
_NOT_TEXT: Final = re.compile("[\x00\ud800-\udfff]")


def instant(value: Any) -> datetime | None:
    """Return a stored instant as an aware one; SQLite hands text over where a statement is plain text."""
    if value is None:
        return None
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)  # type: ignore[no-any-return]


def required_instant(value: Any) -> datetime:
    """Return an instant of a column that is never NULL."""
    result = instant(value)
    assert result is not None
    return result


def stored_instant(value: datetime | None) -> str | None:
    """Return an instant as both databases compare it: UTC, microseconds, no zone."""
    return None if value is None else value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def dump(document: Any) -> str:
    """Return a document as stored: ASCII, so that whatever a user's code put into a string can be sent."""
    return _encode(document)


def dump_parts(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Return rows as JSON arrays, each of which fits one statement; a row that is larger than that goes alone."""
    part: list[str] = []
    size = 0
    for text in map(dump, rows):
        if part and size + len(text) > LARGEST_PART:
            yield f"[{','.join(part)}]"
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield f"[{','.join(part)}]"


def storable(text: str | None) -> str | None:
    """Return text with what no database stores as text replaced by U+FFFD."""
    return None if text is None else _NOT_TEXT.sub("\ufffd", text)


def load(text: str | None) -> Any:
    """Return a stored document."""
    return None if text is None else json.loads(text)


def retry_on_from(text: str | None) -> RetryOn | None:
    """Return what a job's owner said of failures."""
    return None if text is None else {FailureClass(name): times for name, times in json.loads(text).items()}


def job_from(row: Row) -> Job:
    """Return a row of ``orchestrator_jobs``."""
    return Job(
        seq=row["seq"],
        id=row["id"],
        name=row["name"],
        task=row["task"],
        kind=JobKind(row["kind"]),
        queue=row["queue"],
        tenant=row["tenant"],
        submitted_by=row["submitted_by"],
        priority=row["priority"],
        state=JobState(row["state"]),
        reason=row["reason"],
        resources=Resources(row["gpus"], row["gpu_memory_mib"], wants_from(row["wants"])),
        time_limit_seconds=row["time_limit_s"],
        max_attempts=row["max_attempts"],
        retry_on=retry_on_from(row["retry_on"]),
        attempt=row["attempt"],
        lost_count=row["lost_count"],
        run_at=instant(row["run_at"]),
        deadline=instant(row["deadline"]),
        node=row["node"],
        lease_id=row["lease_id"],
        result=load(row["result"]),
        error=row["error"],
        exit_code=row["exit_code"],
        failure_class=FailureClass(row["failure_class"]) if row["failure_class"] else None,
        progress=load(row["progress"]),
        checkpoint=row["checkpoint"],
        cancel_requested_at=instant(row["cancel_requested_at"]),
        created_at=required_instant(row["created_at"]),
        queued_at=instant(row["queued_at"]),
        started_at=instant(row["started_at"]),
        finished_at=instant(row["finished_at"]),
        root_id=row["root_id"],
        parent_id=row["parent_id"],
        group_id=row["group_id"],
        held_by=row["held_by"],
    )


def new_job_row(job: NewJob, payload: str) -> dict[str, Any]:
    """Return the row of a new job, without its state."""
    return {
        "id": job.id,
        "name": job.name,
        "task": job.task,
        "kind": job.kind.value,
        "queue": job.queue,
        "tenant": job.tenant,
        "submitted_by": job.submitted_by,
        "priority": job.priority,
        "payload": payload,
        "headers": dump(job.headers),
        "digest": job.digest,
        "gpus": job.resources.gpus,
        "gpu_memory_mib": job.resources.gpu_memory_mib,
        "wants": wants_text(job.resources.wants),
        "time_limit_s": job.time_limit_seconds,
        "soft_time_limit_s": job.soft_time_limit_seconds,
        "grace_s": job.grace_seconds,
        "max_attempts": job.max_attempts,
        "retry_on": None if job.retry_on is None else dump(dict(job.retry_on)),
        "attempt": 0,
        "lost_count": 0,
        "forgiven": 0,
        "run_at": stored_instant(job.run_at),
        "deadline": stored_instant(job.deadline),
        "idempotency_key": job.idempotency_key,
        "root_id": job.root_id,
        "parent_id": job.parent_id,
        "group_id": job.group_id,
        "request_hash": request_hash(job, payload),
        "traceparent": job.traceparent,
    }


def request_hash(job: NewJob, payload: str) -> str:
    """Return a hash of what was asked for; a key that comes again must come with the same."""
    asked = [
        job.task,
        job.kind.value,
        job.queue,
        job.resources.gpus,
        job.resources.gpu_memory_mib,
        job.priority,
        payload,
    ]
    if job.resources.wants is not None:
        asked.append(wants_text(job.resources.wants))
    return hashlib.sha256(dump(asked).encode()).hexdigest()


def entry_from(row: Row) -> JobEntry:
    """Return the entry of a row that joins ``ready`` and ``jobs``, with what the lease step needs before the claim."""
    header = {
        "seq": row["seq"],
        "gpus": row["gpus"],
        "gpu_memory_mib": row["gpu_memory_mib"],
        "tenant": row["tenant"],
        "kind": row["kind"],
        "priority": row["priority"],
    }
    if row["wants"] is not None:
        header["wants"] = row["wants"]
    if row.get("lease_id") is not None:  # it was granted by its submit
        header["token"] = row["lease_id"]
    headers = load(row["headers"]) or {}
    return JobEntry(row["id"], row["seq"], row["task"], row["queue"], row["node"], headers | {"orchestrator": header})


#: Beside the columns of GPUs: how much of them the policy lets shares have.
FRACTION: Final = select(tables.policy.c.max_gpu_fraction).scalar_subquery().label("max_fraction")


def headroom_from(row: Any) -> int:
    """Return what of a GPU's memory is not lent out in shares, by its host or by the policy."""
    return headroom_mib(row.headroom_mib, row.memory_mib, row.max_fraction)


def links_from(stored: str | None) -> tuple[str, ...]:
    """Return the uuids of the GPUs that one is linked to."""
    return tuple(load(stored)) if stored else ()
