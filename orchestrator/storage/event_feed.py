"""The history as it grows, read by whoever follows it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import and_, or_, select

from orchestrator.domain.job import Document, JobState
from orchestrator.event_ports import Chunk, Cursor, FeedEvent
from orchestrator.storage import tables
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import load, required_instant
from orchestrator.storage.sql import Sql

#: Jobs that one statement asks for output.
MOST_CURSORS: Final = 200

NEWEST: Final = Sql("SELECT COALESCE(MAX(seq), 0) FROM orchestrator_events")
_EVENTS: Final = (
    "SELECT e.seq, e.at, e.kind, e.job_seq, e.node, e.lease_id, e.data, j.id AS job_id, j.tenant, j.state"
    " FROM orchestrator_events e LEFT JOIN orchestrator_jobs j ON j.seq = e.job_seq WHERE "
)
AFTER: Final = Sql(f"{_EVENTS} e.seq > :seq ORDER BY e.seq LIMIT :limit")
MISSING: Final = Sql(f"{_EVENTS} e.seq IN :seqs ORDER BY e.seq", "seqs")
PAGE: Final = Sql(
    f"{_EVENTS} e.seq > :after AND (:upto IS NULL OR e.seq <= :upto) AND (:tenant IS NULL OR j.tenant = :tenant)"
    " ORDER BY e.seq LIMIT :limit"
)
PAGE_OF_JOB: Final = Sql(
    f"{_EVENTS} e.job_seq = :job_seq AND e.seq > :after AND (:upto IS NULL OR e.seq <= :upto)"
    " ORDER BY e.seq LIMIT :limit"
)
PROGRESS: Final = Sql("SELECT seq, progress FROM orchestrator_jobs WHERE seq IN :seqs", "seqs")


class SqlEventStore:
    """``EventStore`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self) -> int:
        """Return the latest number."""
        return int(self._database.read(lambda c: self._database.run(c, NEWEST, {}).scalar_one()))

    def after(self, seq: int, *, missing: Sequence[int] = (), limit: int) -> Sequence[FeedEvent]:
        """Return what came since."""

        def find(connection: Any) -> list[Any]:
            late = self._database.run(connection, MISSING, {"seqs": list(missing)}).all() if missing else []
            return [*late, *self._database.run(connection, AFTER, {"seq": seq, "limit": limit}).all()]

        return [_event(row) for row in self._database.read(find)]

    def page(
        self, *, after: int, upto: int | None, job_seq: int | None, tenant: str | None, limit: int
    ) -> Sequence[FeedEvent]:
        """Return a page of events."""
        values: dict[str, Any] = {"after": after, "upto": upto, "limit": limit}
        values |= {"tenant": tenant} if job_seq is None else {"job_seq": job_seq}
        statement = PAGE if job_seq is None else PAGE_OF_JOB
        return [_event(row) for row in self._database.read(lambda c: self._database.run(c, statement, values).all())]

    def output(self, cursors: Mapping[int, Cursor], *, limit: int) -> Sequence[Chunk]:
        """Return output behind each job's cursor."""
        columns, asked = tables.logs.c, sorted(cursors.items())
        found: list[Chunk] = []
        for start in range(0, len(asked), MOST_CURSORS):
            behind = [
                and_(
                    columns.job_seq == seq,
                    or_(columns.attempt > at.attempt, and_(columns.attempt == at.attempt, columns.number > at.number)),
                )
                for seq, at in asked[start : start + MOST_CURSORS]
            ]
            query = (
                select(columns.job_seq, columns.attempt, columns.number, columns.data)
                .where(or_(*behind))
                .order_by(columns.job_seq, columns.attempt, columns.number)
                .limit(limit)
            )
            rows = self._database.read(lambda c, query=query: c.execute(query).all())  # type: ignore[misc]
            found += [Chunk(row.job_seq, Cursor(row.attempt, row.number), row.data) for row in rows]
        return found

    def progress(self, job_seqs: Sequence[int]) -> Mapping[int, Document | None]:
        """Return what jobs told of themselves."""
        values = {"seqs": list(job_seqs)}
        rows = self._database.read(lambda c: self._database.run(c, PROGRESS, values).all())
        return {row.seq: load(row.progress) for row in rows}


def _event(row: Any) -> FeedEvent:
    return FeedEvent(
        seq=row.seq,
        at=required_instant(row.at),
        kind=row.kind,
        job_seq=row.job_seq,
        job_id=row.job_id,
        tenant=row.tenant,
        state=JobState(row.state) if row.state else None,
        node=row.node,
        lease_id=row.lease_id,
        data=load(row.data) or {},
    )
