"""Ended jobs that a person has deleted before ``retention`` would."""

from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump
from orchestrator.storage.sql import Sql
from orchestrator.storage.sweeps import DELETE_JOBS

#: Without those that wait for a person, and those that another job still names as what it waits for.
_ENDED: Final = (
    "FROM orchestrator_jobs WHERE finished_at < {now_minus:age}"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_dead_letters d WHERE d.job_seq = orchestrator_jobs.seq)"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_needs n WHERE n.needs_id = orchestrator_jobs.id)"
)
COUNT_ENDED: Final = Sql(f"SELECT COUNT(*) AS jobs {_ENDED}")
#: Locked: what is tried again meanwhile has ended no longer.
FIND_ENDED: Final = Sql(f"SELECT seq {_ENDED} ORDER BY finished_at, seq LIMIT :limit {{for_update}}")
EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, data) VALUES ({now}, 'jobs_purge', :data)")


class SqlJobPurge:
    """``JobPurge`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def count_ended(self, older_than: timedelta) -> int:
        """Count the jobs that a purge would delete."""
        ((count,),) = self._database.look(COUNT_ENDED, {"age": older_than.total_seconds()})
        return int(count)

    def purge_ended(self, older_than: timedelta, *, limit: int, by: str) -> int:
        """Delete jobs that ended longer ago, with all that is theirs; see the port."""
        age = older_than.total_seconds()

        def purge(connection: Connection) -> int:
            run = self._database.run
            seqs = list(run(connection, FIND_ENDED, {"age": age, "limit": limit}).scalars())
            if seqs:
                for statement in DELETE_JOBS:
                    run(connection, statement, {"seqs": seqs})
                data = dump({"by": by, "jobs": len(seqs), "older_than_seconds": age})
                run(connection, EVENT, {"data": data})
            return len(seqs)

        return self._database.transaction(purge)
