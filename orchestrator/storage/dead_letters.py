"""Jobs that could not be processed: listed, tried again or dismissed by a person.

Redis holds bounded copies for people to look at; what counts is here.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, select

from orchestrator.dead_letter_ports import DeadLetter, DeadLetterFilter, Revived
from orchestrator.domain.job import FailureClass, JobEvent
from orchestrator.errors import UnknownDeadLetter
from orchestrator.storage import canvases, statements, tables
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump, required_instant
from orchestrator.storage.sql import Sql
from orchestrator.storage.sweeps import fenced

#: A revived job begins anew: nothing of its attempts counts, and a deadline that passed meanwhile does not end it.
REVIVE: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'pending', reason = NULL, error = NULL, exit_code = NULL,"
    " failure_class = NULL, forgiven = attempt, lost_count = 0, node = NULL, started_at = NULL, finished_at = NULL,"
    " queued_at = NULL, cancel_requested_at = NULL, held_by = NULL,"
    " deadline = CASE WHEN deadline <= {now} THEN NULL ELSE deadline END"
    " WHERE seq = :seq AND state IN ('failed', 'cancelled', 'dead_letter')"
)
BURY: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'dead_letter', reason = :reason, error = :error, failure_class = 'poison',"
    " finished_at = {now} WHERE seq = :seq AND state = 'queued'"
)
LOCK_LETTER: Final = Sql("SELECT job_seq FROM orchestrator_dead_letters WHERE job_id = :id {for_update}")
WAS_REVIVED: Final = Sql(
    "SELECT 1 FROM orchestrator_events e JOIN orchestrator_jobs j ON j.seq = e.job_seq"
    " WHERE j.id = :id AND e.kind = 'revive'"
    " AND EXISTS (SELECT 1 FROM orchestrator_events b WHERE b.job_seq = j.seq AND b.kind = 'bury')"
)
LOCK_LETTERS: Final = Sql(
    "SELECT job_seq, job_id FROM orchestrator_dead_letters WHERE job_id IN :ids ORDER BY job_seq DESC {for_update}",
    "ids",
)
DELETE_LETTERS: Final = Sql("DELETE FROM orchestrator_dead_letters WHERE job_seq IN :seqs", "seqs")
DELETE_LETTER: Final = Sql("DELETE FROM orchestrator_dead_letters WHERE job_seq = :seq")
COPIED: Final = Sql("UPDATE orchestrator_dead_letters SET copied = 1 WHERE job_seq IN :seqs", "seqs")


class SqlDeadLetterStore:
    """``DeadLetterStore`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, job_id: str) -> DeadLetter:
        """Return one dead letter."""
        query = select(tables.dead_letters).where(tables.dead_letters.c.job_id == job_id)
        row = self._database.read(lambda c: c.execute(query).first())
        if row is None:
            raise UnknownDeadLetter(job_id)
        return _letter(row)

    def list_letters(self, wanted: DeadLetterFilter) -> Sequence[DeadLetter]:
        """Return dead letters, the newest job first."""
        columns = tables.dead_letters.c
        query = select(tables.dead_letters).order_by(columns.job_seq.desc()).limit(wanted.limit)
        if wanted.queue is not None:
            query = query.where(columns.queue == wanted.queue)
        if wanted.failure_class is not None:
            query = query.where(columns.failure_class == wanted.failure_class.value)
        if wanted.before_seq is not None:
            query = query.where(columns.job_seq < wanted.before_seq)
        return [_letter(row) for row in self._database.read(lambda c: c.execute(query).all())]

    def revive(self, job_id: str, *, by: str) -> Revived:
        """Have a dead letter tried again; see the port."""

        def revive(connection: Connection) -> Revived:
            run = self._database.run
            letter = run(connection, LOCK_LETTER, {"id": job_id}).first()
            if letter is None:
                if run(connection, WAS_REVIVED, {"id": job_id}).first() is None:
                    raise UnknownDeadLetter(job_id)
                return Revived(job_id, changed=False)
            seq = letter.job_seq
            run(connection, DELETE_LETTER, {"seq": seq})
            changed = run(connection, REVIVE, {"seq": seq}).rowcount == 1
            if changed:
                run(connection, statements.READY_AGAIN, {"seqs": [seq]})
                data = dump({"by": by})
                run(connection, statements.EVENT, {"kind": JobEvent.REVIVE.value, "seq": seq, "data": data})
            return Revived(job_id, changed)

        return self._database.transaction(revive)

    def purge(self, job_id: str, *, by: str) -> None:
        """Dismiss a dead letter; see the port."""

        def purge(connection: Connection) -> None:
            letter = self._database.run(connection, LOCK_LETTER, {"id": job_id}).first()
            if letter is None:
                raise UnknownDeadLetter(job_id)
            self._database.run(connection, DELETE_LETTER, {"seq": letter.job_seq})
            event = {"kind": "purge", "seq": letter.job_seq, "data": dump({"by": by})}
            self._database.run(connection, statements.EVENT, event)

        self._database.transaction(purge)

    def purge_all(self, wanted: DeadLetterFilter, *, by: str) -> Sequence[str]:
        """Dismiss a page of dead letters; see the port."""
        found = [letter.job_id for letter in self.list_letters(wanted)]

        def purge(connection: Connection) -> Sequence[str]:
            letters = self._database.run(connection, LOCK_LETTERS, {"ids": found}).all()
            if letters:
                self._database.run(connection, DELETE_LETTERS, {"seqs": [letter.job_seq for letter in letters]})
                data = dump({"by": by})
                events = [{"kind": "purge", "seq": letter.job_seq, "data": data} for letter in letters]
                self._database.run(connection, statements.EVENT, events)
            return [letter.job_id for letter in letters]

        return self._database.transaction(purge) if found else []

    def bury(self, job_id: str, *, by: str, reason: str) -> bool:
        """Make an admitted job a dead letter; see the port."""

        def bury(connection: Connection) -> bool:
            run = self._database.run
            run(connection, statements.LOCK_WAITING[0], {"id": job_id}).all()
            job = run(connection, statements.JOB_FOR_UPDATE, {"id": job_id}).first()
            if job is None:
                return False
            words = {"seq": job.seq, "reason": reason[:512], "error": reason}
            if not run(connection, BURY, words).rowcount:
                return False
            run(connection, statements.DELETE_READY, {"seqs": [job.seq]})
            data = dump({"by": by, "reason": reason})
            run(connection, statements.EVENT, {"kind": JobEvent.BURY.value, "seq": job.seq, "data": data})
            run(connection, statements.INSERT_LETTERS, {"seqs": [job.seq]})
            canvases.end_dependents(self._database, connection, [job.seq])
            return True

        return self._database.transaction(bury)

    def uncopied(self, *, limit: int) -> Sequence[DeadLetter]:
        """Return dead letters whose copy is not in the stream yet, oldest first."""
        columns = tables.dead_letters.c
        query = select(tables.dead_letters).where(columns.copied == 0).order_by(columns.job_seq).limit(limit)
        return [_letter(row) for row in self._database.read(lambda c: c.execute(query).all())]

    def note_copied(self, seqs: Sequence[int], *, epoch: int) -> None:
        """Record that the stream has had these."""
        fenced(self._database, epoch, lambda c: self._database.run(c, COPIED, {"seqs": list(seqs)}))


def _letter(row: Any) -> DeadLetter:
    return DeadLetter(
        seq=row.job_seq,
        job_id=row.job_id,
        queue=row.queue,
        failure_class=FailureClass(row.failure_class),
        reason=row.reason,
        at=required_instant(row.at),
    )
