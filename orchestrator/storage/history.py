"""The history for the checker: one consistent view, read in batches so that its size does not matter."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from orchestrator.domain.history import (
    AttemptRow,
    Event,
    GpuRow,
    HistoryView,
    Hold,
    JobHistory,
    JobRow,
    LeaseRow,
    ReadyPlace,
)
from orchestrator.domain.job import JobState, LeaseMode, Resources
from orchestrator.domain.wants import wants_from
from orchestrator.errors import StoreUnavailable
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import instant, load, required_instant
from orchestrator.storage.sql import Sql

Result = TypeVar("Result")

#: Jobs whose histories are in memory together, and rows that a stream fetches at once.
BATCH: Final = 500

NOW: Final = Sql("SELECT {now}")
JOBS: Final = Sql(
    "SELECT j.seq, j.id, j.queue, j.state, j.gpus, j.gpu_memory_mib, j.wants, j.max_attempts, j.attempt, j.lost_count,"
    " j.forgiven, j.lease_id, j.run_at, j.deadline,"
    " r.job_seq AS ready_seq, r.publish_at, r.entry_id, r.node, s.run_at AS scheduled_at,"
    " (SELECT COUNT(*) FROM orchestrator_needs n WHERE n.job_seq = j.seq) AS needs,"
    " (SELECT MIN(e.id) FROM orchestrator_needs n JOIN orchestrator_jobs e ON e.id = n.needs_id"
    " WHERE n.job_seq = j.seq AND e.state IN ('failed', 'cancelled', 'dead_letter')) AS failed_need"
    " FROM orchestrator_jobs j LEFT JOIN orchestrator_ready r ON r.job_seq = j.seq"
    " LEFT JOIN orchestrator_scheduled s ON s.job_seq = j.seq WHERE j.seq > :after ORDER BY j.seq LIMIT :limit"
)
_EVENT_COLUMNS: Final = "seq, at, kind, job_seq, node, lease_id, epoch, data"
EVENTS: Final = Sql(
    f"SELECT {_EVENT_COLUMNS} FROM orchestrator_events WHERE job_seq IN :seqs ORDER BY seq",  # noqa: S608 - above
    "seqs",
)
ATTEMPTS: Final = Sql(
    "SELECT job_seq, number, lease_id, node, ended_at, outcome, failure_class FROM orchestrator_attempts"
    " WHERE job_seq IN :seqs ORDER BY job_seq, number",
    "seqs",
)
LAST_OUTPUT: Final = Sql(
    "SELECT job_seq, attempt, MAX(at) AS at FROM orchestrator_logs WHERE job_seq IN :seqs GROUP BY job_seq, attempt",
    "seqs",
)
_LEASE_COLUMNS: Final = "id, node, mode, memory_mib, state, granted_at, heartbeat_at, expires_at, ended_at"
_LEASE: Final = (
    f"SELECT {_LEASE_COLUMNS}, (SELECT GROUP_CONCAT(g.gpu_uuid) FROM orchestrator_lease_gpus g"  # noqa: S608 - above
    " WHERE g.lease_id = orchestrator_leases.id) AS gpu_uuids FROM orchestrator_leases"
)
NAMED_LEASES: Final = Sql(f"{_LEASE} WHERE id IN :ids", "ids")
LEASES: Final = Sql(f"{_LEASE} WHERE id > :after ORDER BY id LIMIT :limit")
GPUS: Final = Sql(
    "SELECT uuid, node, memory_mib, reserved_mib, exclusive_lease_id, last_lease_id, turn FROM orchestrator_gpus"
    " ORDER BY uuid"
)
HOLDS: Final = Sql(
    "SELECT g.lease_id, l.mode, l.memory_mib, l.state, g.taken_turn, g.freed_turn, g.live_exclusive"
    " FROM orchestrator_lease_gpus g JOIN orchestrator_leases l ON l.id = g.lease_id WHERE g.gpu_uuid = :uuid"
    " ORDER BY g.taken_turn, g.lease_id"
)
LEADER_EVENTS: Final = Sql(
    f"SELECT {_EVENT_COLUMNS} FROM orchestrator_events WHERE epoch IS NOT NULL ORDER BY seq"  # noqa: S608 - above
)
_OF_JOBS: Final = ("events", "attempts", "ready", "scheduled", "needs", "logs")
STRAYS: Final = tuple(
    (
        table,
        Sql(
            f"SELECT DISTINCT t.job_seq FROM orchestrator_{table} t"  # noqa: S608 - the names stand above
            " LEFT JOIN orchestrator_jobs j ON j.seq = t.job_seq WHERE t.job_seq IS NOT NULL AND j.seq IS NULL"
        ),
    )
    for table in _OF_JOBS
)


class SqlHistory:
    """``HistoryStore`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, visit: Callable[[HistoryView], Result]) -> Result:
        """Run ``visit`` in one transaction that sees one state and locks nothing."""
        begin = (
            "BEGIN" if self._database.dialect == "sqlite" else "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
        )
        try:
            with self._database.engine.connect() as connection:
                if self._database.dialect == "mysql":
                    # For the next transaction alone: this connection goes back to the pool as it was.
                    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                connection.exec_driver_sql(begin)
                return visit(SqlHistoryView(self._database, connection))
        except DBAPIError as error:
            raise StoreUnavailable(f"cannot read the history: {error.orig}") from error


class SqlHistoryView:
    """``HistoryView`` over one transaction."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database, self._connection = database, connection
        self._now = required_instant(self._run(NOW)[0][0])

    def now(self) -> datetime:
        """Return the database's clock when the view was opened."""
        return self._now

    def jobs(self) -> Iterator[JobHistory]:
        """Yield every job, oldest first."""
        after = 0
        while rows := self._run(JOBS, after=after, limit=BATCH):
            after = rows[-1].seq
            yield from self._histories(rows)

    def leases(self) -> Iterator[LeaseRow]:
        """Yield every lease by its id."""
        after = 0
        while rows := self._run(LEASES, after=after, limit=BATCH):
            after = rows[-1].id
            yield from map(_lease, rows)

    def gpus(self) -> Sequence[GpuRow]:
        """Return every GPU."""
        return [GpuRow(*row) for row in self._run(GPUS)]

    def holds(self, gpu_uuid: str) -> Iterator[Hold]:
        """Yield who held a GPU, by turn and lease."""
        for row in self._stream(HOLDS, uuid=gpu_uuid):
            mode = LeaseMode(row.mode)
            marked = row.live_exclusive is not None
            yield Hold(row.lease_id, mode, row.memory_mib, row.state, row.taken_turn, row.freed_turn, marked)

    def leader_events(self) -> Iterator[Event]:
        """Yield the begin of each leader's term and what leaders wrote, in the order of writing."""
        yield from map(_event, self._stream(LEADER_EVENTS))

    def strays(self) -> Iterator[tuple[str, int]]:
        """Yield (table, job seq) of rows that name a job which does not exist."""
        for table, statement in STRAYS:
            for row in self._stream(statement):
                yield table, row.job_seq

    def _histories(self, rows: Sequence[Any]) -> Iterator[JobHistory]:
        seqs = [row.seq for row in rows]
        events: dict[int, list[Event]] = defaultdict(list)
        for row in self._run(EVENTS, seqs=seqs):
            events[row.job_seq].append(_event(row))
        written = {(row.job_seq, row.attempt): instant(row.at) for row in self._run(LAST_OUTPUT, seqs=seqs)}
        attempts: dict[int, list[AttemptRow]] = defaultdict(list)
        for row in self._run(ATTEMPTS, seqs=seqs):
            attempts[row.job_seq].append(_attempt(row, written.get((row.job_seq, row.number))))
        named = {event.lease_id for of_job in events.values() for event in of_job}
        named |= {attempt.lease_id for of_job in attempts.values() for attempt in of_job}
        leases = self._leases(sorted(lease_id for lease_id in named if lease_id is not None))
        for row in rows:
            mine = {event.lease_id for event in events[row.seq]} | {one.lease_id for one in attempts[row.seq]}
            named_here = {
                lease_id: leases[lease_id] for lease_id in mine if lease_id is not None and lease_id in leases
            }
            yield JobHistory(_job(row), tuple(events[row.seq]), tuple(attempts[row.seq]), named_here)

    def _leases(self, ids: Sequence[int]) -> dict[int, LeaseRow]:
        return {row.id: _lease(row) for row in self._run(NAMED_LEASES, ids=ids)} if ids else {}

    def _run(self, statement: Sql, **parameters: Any) -> Sequence[Any]:
        return self._database.run(self._connection, statement, parameters).all()

    def _stream(self, statement: Sql, **parameters: Any) -> Iterator[Any]:
        said, bound = statement.with_values(self._database.dialect, parameters)
        with self._connection.exec_driver_sql(said, bound, execution_options={"yield_per": BATCH}) as rows:
            yield from rows


def _job(row: Any) -> JobRow:
    place = None if row.ready_seq is None else ReadyPlace(instant(row.publish_at), row.entry_id, row.node)
    return JobRow(
        seq=row.seq,
        id=row.id,
        queue=row.queue,
        state=JobState(row.state),
        resources=Resources(row.gpus, row.gpu_memory_mib, wants_from(row.wants)),
        max_attempts=row.max_attempts,
        attempt=row.attempt,
        lost_count=row.lost_count,
        forgiven=row.forgiven,
        lease_id=row.lease_id,
        run_at=instant(row.run_at),
        deadline=instant(row.deadline),
        ready=place,
        scheduled_at=instant(row.scheduled_at),
        needs=row.needs,
        failed_need=row.failed_need,
    )


def _event(row: Any) -> Event:
    data: Mapping[str, Any] | None = load(row.data)
    return Event(row.seq, required_instant(row.at), row.kind, row.job_seq, row.node, row.lease_id, row.epoch, data)


def _attempt(row: Any, last_output_at: datetime | None) -> AttemptRow:
    ended = row.ended_at is not None
    return AttemptRow(row.number, row.lease_id, row.node, ended, row.outcome, row.failure_class, last_output_at)


def _lease(row: Any) -> LeaseRow:
    return LeaseRow(
        id=row.id,
        node=row.node,
        mode=LeaseMode(row.mode),
        memory_mib=row.memory_mib,
        state=row.state,
        granted_at=required_instant(row.granted_at),
        heartbeat_at=required_instant(row.heartbeat_at),
        expires_at=required_instant(row.expires_at),
        ended_at=instant(row.ended_at),
        gpus=tuple((row.gpu_uuids or "").split(",")) if row.gpu_uuids else (),
    )
