"""Orders about single jobs: another priority, hold and release, another try.

A held job stays where it waits; its rank in ``orchestrator_ready`` is behind all that admission looks at, so that held
jobs cost a pass nothing.
"""

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.control_ports import JobChange
from orchestrator.domain.job import Job, JobEvent, JobState, next_state
from orchestrator.errors import IllegalTransition, NotRetriable, UnknownJob
from orchestrator.storage import statements
from orchestrator.storage.dead_letters import DELETE_LETTER, REVIVE
from orchestrator.storage.engine import Database
from orchestrator.storage.placing import withdraw
from orchestrator.storage.rows import dump, job_from
from orchestrator.storage.sql import Sql

#: Where an order can still matter.
WAITING: Final = frozenset({JobState.SCHEDULED, JobState.PENDING, JobState.QUEUED})

_WAITS: Final = "WHERE seq = :seq AND state IN ('scheduled', 'pending', 'queued')"
SET_PRIORITY: Final = Sql(f"UPDATE orchestrator_jobs SET priority = :priority {_WAITS}")  # noqa: S608 - a constant
SET_RANK: Final = Sql(
    "UPDATE orchestrator_ready SET `rank` = 9 - :priority + CASE WHEN `rank` < 100 THEN 0 ELSE 100 END"
    " WHERE job_seq = :seq"
)
SET_HELD_BY: Final = Sql(f"UPDATE orchestrator_jobs SET held_by = :by {_WAITS}")  # noqa: S608 - a constant
RANK_BEHIND: Final = Sql("UPDATE orchestrator_ready SET `rank` = `rank` + 100 WHERE job_seq = :seq AND `rank` < 100")
RANK_AGAIN: Final = Sql("UPDATE orchestrator_ready SET `rank` = `rank` - 100 WHERE job_seq = :seq AND `rank` >= 100")
#: What tells that a job had all that it waited for in its canvas.
WAS_CALLED: Final = Sql(
    "SELECT 1 FROM orchestrator_events WHERE job_seq = :seq AND kind IN ('release', 'defer', 'admit', 'claim') LIMIT 1"
)


class SqlJobControl:
    """``JobControl`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_priority(self, job_id: str, priority: int, *, by: str) -> JobChange:
        """Give a waiting job another priority; see the port."""

        def change(connection: Connection, job: Job) -> bool:
            _refuse_unless_waiting(job, "change its priority")
            if job.priority == priority:
                return False
            values = {"seq": job.seq, "priority": priority}
            self._database.run(connection, SET_PRIORITY, values)
            self._database.run(connection, SET_RANK, values)
            self._note(connection, job, "set_priority", by, was=job.priority, priority=priority)
            return True

        return self._change(job_id, change)

    def hold(self, job_id: str, *, by: str) -> JobChange:
        """Keep a waiting job from starting; see the port."""

        def change(connection: Connection, job: Job) -> bool:
            _refuse_unless_waiting(job, "be held")
            if job.held_by is not None:
                return False
            withdraw(self._database, connection, [job.seq])
            self._database.run(connection, SET_HELD_BY, {"seq": job.seq, "by": by})
            self._database.run(connection, RANK_BEHIND, {"seq": job.seq})
            self._note(connection, job, "hold", by)
            return True

        return self._change(job_id, change)

    def unhold(self, job_id: str, *, by: str) -> JobChange:
        """Let a held job go; see the port."""

        def change(connection: Connection, job: Job) -> bool:
            _refuse_unless_waiting(job, "be released")
            if job.held_by is None:
                return False
            self._database.run(connection, SET_HELD_BY, {"seq": job.seq, "by": None})
            self._database.run(connection, RANK_AGAIN, {"seq": job.seq})
            self._note(connection, job, "unhold", by)
            return True

        return self._change(job_id, change)

    def retry(self, job_id: str, *, by: str) -> JobChange:
        """Have a job that ended otherwise than well tried again; see the port."""

        def change(connection: Connection, job: Job) -> bool:
            next_state(job.state, JobEvent.REVIVE)
            run, seq = self._database.run, job.seq
            if job.state is JobState.DEAD_LETTER and not run(connection, DELETE_LETTER, {"seq": seq}).rowcount:
                raise NotRetriable(job.id, "it is a dead letter that was dismissed")
            if job.state is JobState.CANCELLED and self._never_called(connection, job):
                raise NotRetriable(job.id, "it was cancelled before its canvas came to it; submit the canvas again")
            run(connection, REVIVE, {"seq": seq})
            run(connection, statements.READY_AGAIN, {"seqs": [seq]})
            self._note(connection, job, JobEvent.REVIVE.value, by)
            return True

        return self._change(job_id, change)

    def _never_called(self, connection: Connection, job: Job) -> bool:
        """A member of a canvas that waited for others lacks what they would have handed it."""
        in_canvas = job.root_id not in (None, job.id) or job.group_id is not None
        return in_canvas and self._database.run(connection, WAS_CALLED, {"seq": job.seq}).first() is None

    def _change(self, job_id: str, order: Callable[[Connection, Job], bool]) -> JobChange:
        """Run an order on a locked job, and return the job as it is then."""

        def change(connection: Connection) -> JobChange:
            for statement in statements.LOCK_WAITING:
                self._database.run(connection, statement, {"id": job_id}).all()
            changed = order(connection, self._locked(connection, job_id))
            return JobChange(self._locked(connection, job_id), changed)

        return self._database.transaction(change)

    def _locked(self, connection: Connection, job_id: str) -> Job:
        found = self._database.run(connection, statements.JOB_FOR_UPDATE, {"id": job_id}).mappings().first()
        if found is None:
            raise UnknownJob(job_id)
        return job_from(found)

    def _note(self, connection: Connection, job: Job, kind: str, by: str, **more: Any) -> None:
        event = {"kind": kind, "seq": job.seq, "data": dump({"by": by} | more)}
        self._database.run(connection, statements.EVENT, event)


def _refuse_unless_waiting(job: Job, order: str) -> None:
    if job.state not in WAITING:
        raise IllegalTransition(job.state.value, order)
