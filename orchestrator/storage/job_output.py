"""What jobs printed, from a place on or from the end."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.job import TERMINAL_STATES, JobState
from orchestrator.errors import UnknownJob
from orchestrator.ports import LogPage
from orchestrator.storage.engine import Database
from orchestrator.storage.sql import Sql

JOB: Final = Sql(
    "SELECT j.seq, j.state, (SELECT a.ended_at FROM orchestrator_attempts a WHERE a.job_seq = j.seq"
    " AND a.number = :attempt) IS NOT NULL AS attempt_ended FROM orchestrator_jobs j WHERE j.id = :id"
)
_CHUNKS: Final = (
    "SELECT attempt, number, data FROM orchestrator_logs WHERE job_seq = :seq"
    " AND (:attempt IS NULL OR attempt = :attempt) AND"
)
AFTER: Final = Sql(
    f"{_CHUNKS} (attempt > :after_attempt OR (attempt = :after_attempt AND number > :after_number))"
    " ORDER BY attempt, number LIMIT :limit"
)
BEFORE: Final = Sql(
    f"{_CHUNKS} (attempt < :before_attempt OR (attempt = :before_attempt AND number < :before_number))"
    " ORDER BY attempt DESC, number DESC LIMIT :limit"
)
#: Chunks that are read at once, from the end back.
STEP: Final = 50
_BEHIND_ALL: Final = (1 << 31) - 1


class JobOutput:
    """The output of jobs; reads alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, job_id: str, *, after: tuple[int, int] | None, limit: int, attempt: int | None) -> LogPage:
        """Return chunks after a cursor (attempt, number), of all attempts or of one."""
        after_attempt, after_number = after or (0, -1)

        def load(connection: Connection) -> LogPage:
            seq, over = self._standing(connection, job_id, attempt)
            values = {"seq": seq, "attempt": attempt, "limit": limit}
            values |= {"after_attempt": after_attempt, "after_number": after_number}
            rows = self._database.run(connection, AFTER, values).all()
            return LogPage(tuple((row.attempt, row.number, row.data) for row in rows), over and len(rows) < limit)

        return self._database.read(load)

    def tail(self, job_id: str, *, lines: int, limit: int, attempt: int | None) -> LogPage:
        """Return the last lines, from at most ``limit`` chunks; of 0 lines there is the place where they would end."""

        def load(connection: Connection) -> LogPage:
            seq, over = self._standing(connection, job_id, attempt)
            newest_first: list[Any] = []
            while len(newest_first) < limit and sum(row.data.count("\n") for row in newest_first) <= lines:
                last = newest_first[-1] if newest_first else None
                values = {"seq": seq, "attempt": attempt, "limit": min(STEP, limit - len(newest_first))}
                values["before_attempt"] = last.attempt if last else _BEHIND_ALL
                values["before_number"] = last.number if last else 0
                rows = self._database.run(connection, BEFORE, values).all()
                if not rows:
                    break
                newest_first += rows
            return LogPage(last_lines([(row.attempt, row.number, row.data) for row in newest_first[::-1]], lines), over)

        return self._database.read(load)

    def _standing(self, connection: Connection, job_id: str, attempt: int | None) -> tuple[int, bool]:
        """Return the job's seq, and whether no more can come.

        It is asked before the output: that is written before the end, so an end seen here has all of it below.
        """
        row = self._database.run(connection, JOB, {"id": job_id, "attempt": attempt}).first()
        if row is None:
            raise UnknownJob(job_id)
        return row.seq, JobState(row.state) in TERMINAL_STATES or bool(row.attempt_ended)


def last_lines(chunks: Sequence[tuple[int, int, str]], lines: int) -> tuple[tuple[int, int, str], ...]:
    """Return the end of a text that comes in chunks; the first of them is cut where a line begins.

    The last chunk is always there, if only as a place: what follows it is what comes next.
    """
    text = "".join(data for _, _, data in chunks)
    start = len(text.removesuffix("\n")) if lines else len(text)
    for _ in range(lines):
        start = text.rfind("\n", 0, start)
        if start < 0:
            return tuple(chunks)
    start += lines > 0
    kept = []
    for attempt, number, data in chunks:
        if start < len(data):
            kept.append((attempt, number, data[max(0, start) :]))
        start -= len(data)
    return tuple(kept or ((attempt, number, "") for attempt, number, _ in chunks[-1:]))
