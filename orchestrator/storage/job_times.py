"""How long jobs waited and ran, read in the order in which they ended."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from orchestrator.domain.job import JobState
from orchestrator.metric_ports import EndedJob, JobSize, Mark
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import instant, required_instant, stored_instant
from orchestrator.storage.sql import Sql

#: An end is dated by the statement that writes it, and no transaction idles longer than this.
SETTLE: Final = timedelta(seconds=5)
NOW: Final = Sql("SELECT {now} AS now")
#: By the index on ``finished_at``, which ends with the primary key.
ENDED: Final = Sql(
    "SELECT seq, queue, task, state, gpus, gpu_memory_mib, created_at, run_at, started_at,"
    " finished_at FROM orchestrator_jobs"
    " WHERE finished_at >= :at AND finished_at < {now_minus:settle} AND (finished_at > :at OR seq > :seq)"
    " ORDER BY finished_at, seq LIMIT :limit"
)


class SqlJobTimes:
    """``JobTimes`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def mark(self) -> Mark:
        """Return the present place."""
        return Mark(required_instant(self._database.read(lambda c: self._database.run(c, NOW, {}).scalar_one())), 0)

    def ended(self, after: Mark, *, limit: int) -> tuple[Sequence[EndedJob], Mark]:
        """Return jobs that ended after a place, and the place of the last one."""
        values = {"at": stored_instant(after.at), "seq": after.seq, "limit": limit, "settle": SETTLE.total_seconds()}
        rows = self._database.read(lambda c: self._database.run(c, ENDED, values).all())
        if not rows:
            return (), after
        return [_ended(row) for row in rows], Mark(required_instant(rows[-1].finished_at), rows[-1].seq)


def _ended(row: Any) -> EndedJob:
    created, started, finished = (
        required_instant(row.created_at),
        instant(row.started_at),
        required_instant(row.finished_at),
    )
    if started is None:
        return EndedJob(row.queue, row.task, JobState(row.state), None, None, _size(row))
    waited = started - _ready(created, instant(row.run_at), started)
    seconds = (waited.total_seconds(), (finished - started).total_seconds())
    return EndedJob(row.queue, row.task, JobState(row.state), *seconds, _size(row))


def _size(row: Any) -> JobSize:
    if row.gpu_memory_mib is not None:
        return JobSize.SHARE
    return JobSize.MANY if row.gpus > 1 else JobSize.ONE if row.gpus else JobSize.NONE


def _ready(created: datetime, run_at: datetime | None, started: datetime) -> datetime:
    """Return since when a job could start."""
    ready = created if run_at is None else max(created, run_at)
    return min(ready, started)
