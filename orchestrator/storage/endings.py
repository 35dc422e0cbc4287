"""How attempts and leases end, whoever ends them: a worker's finish, an expiry, a host that registers again."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.job import FailureClass, JobEvent, JobState, LeaseMode, next_state
from orchestrator.domain.lease import Finish
from orchestrator.ports import LossPolicy
from orchestrator.storage import statements
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump, stored_instant
from orchestrator.storage.sql import Sql

#: What a job gets back of a claim that its worker returned unused.
_RETURNED: Final = {JobEvent.GIVE_BACK: 1}
OPEN_ATTEMPTS: Final = Sql(
    "SELECT a.job_seq, a.number, a.lease_id, a.node, j.lost_count FROM orchestrator_attempts a"
    " JOIN orchestrator_jobs j ON j.seq = a.job_seq AND j.attempt = a.number AND j.lease_id = a.lease_id"
    " WHERE a.lease_id IN :ids AND a.ended_at IS NULL AND j.state = 'running' {for_update}",
    "ids",
)


def end_attempts(database: Database, connection: Connection, node: str | None, finishes: Sequence[Finish]) -> None:
    """Write how attempts ended; the caller has locked the jobs and checked that the attempts are theirs."""
    if not finishes:
        return
    run = database.run
    by_event = {event: list(group) for event, group in itertools.groupby(sorted(finishes, key=_event), key=_event)}
    _succeed(database, connection, by_event.pop(JobEvent.SUCCEED, []))
    for group in by_event.values():
        for finish in group:
            run(connection, statements.END_JOB, _end_row(finish))
    again = [f.job_seq for event in (JobEvent.RETRY, JobEvent.LOSE) for f in by_event.get(event, [])]
    if again:
        run(connection, statements.SCHEDULE_JOBS, {"seqs": again})
    returned = by_event.get(JobEvent.GIVE_BACK, [])
    if returned:
        run(connection, statements.READY_AGAIN, {"seqs": [finish.job_seq for finish in returned]})
        unused = [{"seq": finish.job_seq, "number": finish.attempt} for finish in returned]
        run(connection, statements.DELETE_ATTEMPT, unused)
    document = dump([_attempt_row(finish) for finish in finishes])
    if len(returned) < len(finishes):
        # An attempt that was given back has no row any more: it is in the document and matches nothing.
        run(connection, statements.CLOSE_ATTEMPTS, {"rows": document})
    run(connection, statements.END_EVENTS, {"rows": document, "node": node})


def end_leases(database: Database, connection: Connection, lease_ids: Iterable[int], state: str) -> list[int]:
    """End the leases that are still active and free their GPUs; return which those were."""
    run = database.run
    active = run(connection, statements.LOCK_ACTIVE_LEASES, {"ids": sorted(lease_ids)}).all()
    ids = [row.id for row in active]
    if not ids:
        return []
    run(connection, statements.END_LEASES, {"ids": ids, "state": state})
    exclusive = [row.id for row in active if row.mode == LeaseMode.EXCLUSIVE.value]
    if exclusive:
        run(connection, statements.FREE_EXCLUSIVE, {"ids": exclusive})
        run(connection, statements.UNMARK_LEASE_GPUS, {"ids": exclusive})
    for row in active:
        if row.mode == LeaseMode.SHARED.value:
            run(connection, statements.FREE_SHARED, {"lease_id": row.id, "mib": row.memory_mib})
    return ids


def lose_jobs(
    database: Database, connection: Connection, lease_ids: Sequence[int], policy: LossPolicy, why: FailureClass
) -> int:
    """Have the jobs that ran under ended leases run again, or make them dead letters."""
    rows = database.run(connection, OPEN_ATTEMPTS, {"ids": list(lease_ids)}).all()
    for row in rows:
        last = row.lost_count + 1 >= policy.max_lost
        finish = Finish(
            job_seq=row.job_seq,
            attempt=row.number,
            lease_id=row.lease_id,
            event=JobEvent.BURY if last else JobEvent.LOSE,
            error="its worker was lost" + (f" for the {policy.max_lost}th time" if last else ""),
            failure_class=why,
            delay_seconds=policy.delay.total_seconds(),
        )
        end_attempts(database, connection, row.node, [finish])
    return len(rows)


def _event(finish: Finish) -> JobEvent:
    return finish.event


def _succeed(database: Database, connection: Connection, finishes: Sequence[Finish]) -> None:
    if not finishes:
        return
    results = {finish.job_seq: None if finish.result is None else dump(finish.result) for finish in finishes}
    if len(set(results.values())) == 1:
        values = {"seqs": list(results), "result": next(iter(results.values()))}
        database.run(connection, statements.SUCCEED_JOBS_ALIKE, values)
    else:
        rows = [{"seq": seq, "result": result} for seq, result in results.items()]
        database.run(connection, statements.SUCCEED_JOBS, {"rows": dump(rows)})


def _end_row(finish: Finish) -> dict[str, Any]:
    reason = (finish.error or "").splitlines()[:1]
    return {
        "seq": finish.job_seq,
        "state": next_state(JobState.RUNNING, finish.event).value,
        "exit_code": finish.exit_code,
        "error": finish.error,
        "reason": reason[0][:512] if reason else None,
        "failure_class": finish.failure_class.value if finish.failure_class else None,
        "result": None if finish.result is None else dump(finish.result),
        "payload": None if finish.payload is None else dump(finish.payload),
        "lost": int(finish.event in (JobEvent.LOSE, JobEvent.BURY)),
        "delay": finish.delay_seconds,
        "given_back": _RETURNED.get(finish.event, 0),
    }


def _attempt_row(finish: Finish) -> dict[str, Any]:
    return {
        "seq": finish.job_seq,
        "number": finish.attempt,
        "lease_id": finish.lease_id,
        "ended_at": stored_instant(finish.ended_at),
        "started_at": stored_instant(finish.started_at),
        "pid": finish.pid,
        "outcome": finish.event.value,
        "failure_class": finish.failure_class.value if finish.failure_class else None,
        "exit_code": finish.exit_code,
        "error": finish.error,
        "peak_memory_mib": finish.peak_memory_mib,
        "gpu_seconds": finish.gpu_seconds,
    }
