"""How attempts and leases end, whoever ends them: a worker's finish, an expiry, a host that registers again."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.job import FailureClass, JobEvent, JobState, LeaseMode, next_state
from orchestrator.domain.lease import Finish
from orchestrator.metric_ports import Total
from orchestrator.ports import LossPolicy
from orchestrator.storage import statements
from orchestrator.storage.canvases import end_dependents
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump, dump_parts, storable, stored_instant
from orchestrator.storage.sql import Sql
from orchestrator.storage.totals import raise_total

#: What a job gets back of a claim that its worker returned unused.
_RETURNED: Final = {JobEvent.GIVE_BACK: 1}
#: Events after which a job would run again; one that somebody asked to cancel ends instead.
_RUNS_AGAIN: Final = frozenset({JobEvent.RETRY, JobEvent.LOSE, JobEvent.GIVE_BACK, JobEvent.REQUEUE})
#: Events after which nothing that waits for the job in its canvas can start.
_BADLY: Final = (JobEvent.FAIL, JobEvent.BURY, JobEvent.CANCEL)
#: Most characters of a result that are stored; a larger one would not fit the database's packets, whatever the batch.
LARGEST_RESULT: Final = 4 << 20
OPEN_ATTEMPTS: Final = Sql(
    "SELECT a.job_seq, a.number, a.lease_id, a.node, j.lost_count, j.cancel_requested_at IS NOT NULL AS cancelling"
    " FROM orchestrator_attempts a"
    " JOIN orchestrator_jobs j ON j.seq = a.job_seq AND j.attempt = a.number AND j.lease_id = a.lease_id"
    " WHERE a.lease_id IN :ids AND a.ended_at IS NULL AND j.state = 'running'"
    " ORDER BY a.lease_id, a.claimed_at, a.job_seq {for_update}",
    "ids",
)


#: Stands for a result that is not stored; no document looks like it.
_TOO_LARGE: Final = "too large"


def end_attempts(
    database: Database,
    connection: Connection,
    node: str | None,
    finishes: Sequence[Finish],
    *,
    epoch: int | None = None,
) -> None:
    """Write how attempts ended; the caller has locked the jobs and checked that the attempts are theirs.

    ``epoch`` is the leader's, when it is one that writes this.
    """
    if not finishes:
        return
    run = database.run
    by_event = {event: list(group) for event, group in itertools.groupby(sorted(finishes, key=_event), key=_event)}
    _succeed(database, connection, by_event.pop(JobEvent.SUCCEED, []))
    if not by_event:
        return
    others = [finish for group in by_event.values() for finish in group]
    for finish in others:
        run(connection, statements.END_JOB, _end_row(finish))
    buried = [finish.job_seq for finish in by_event.get(JobEvent.BURY, [])]
    if buried:
        run(connection, statements.INSERT_LETTERS, {"seqs": buried})
    again = [f.job_seq for event in (JobEvent.RETRY, JobEvent.LOSE) for f in by_event.get(event, [])]
    if again:
        run(connection, statements.SCHEDULE_JOBS, {"seqs": again})
    requeued, returned = (by_event.get(event, []) for event in (JobEvent.REQUEUE, JobEvent.GIVE_BACK))
    if requeued or returned:
        run(connection, statements.READY_AGAIN, {"seqs": [finish.job_seq for finish in (*requeued, *returned)]})
    if returned:
        unused = [{"seq": finish.job_seq, "number": finish.attempt} for finish in returned]
        run(connection, statements.DELETE_ATTEMPT, unused)
    documents = list(dump_parts(map(_attempt_row, others)))
    if len(returned) < len(others):
        # An attempt that was given back has no row any more: it is in the document and matches nothing.
        for part in documents:
            run(connection, statements.CLOSE_ATTEMPTS, {"rows": part})
    for part in documents:
        run(connection, statements.END_EVENTS, {"rows": part, "node": node, "epoch": epoch})
    badly = [f.job_seq for event in _BADLY for f in by_event.get(event, [])]
    end_dependents(database, connection, badly, epoch=epoch)
    _count(database, connection, node, others)


def heed_cancel(finish: Finish) -> Finish:
    """Return how an attempt ends whose job somebody asked to cancel: it does not run again."""
    if finish.event not in _RUNS_AGAIN:
        return finish
    return replace(finish, event=JobEvent.CANCEL, error="cancelled while it ran", payload=None)


def end_leases(
    database: Database, connection: Connection, lease_ids: Iterable[int], state: str, *, node: str | None = None
) -> list[int]:
    """End the leases that are still active, and this node's if one is given, and free their GPUs; return which."""
    run = database.run
    locked = run(connection, statements.LOCK_ACTIVE_LEASES, {"ids": sorted(lease_ids)}).all()
    active = [row for row in locked if node is None or row.node == node]
    ids = [row.id for row in active]
    if not ids:
        return []
    run(connection, statements.END_LEASES, {"ids": ids, "state": state})
    exclusive = [row.id for row in active if row.mode == LeaseMode.EXCLUSIVE.value]
    if exclusive:
        run(connection, statements.FREE_EXCLUSIVE, {"ids": exclusive})
    for row in active:
        if row.mode == LeaseMode.SHARED.value:
            run(connection, statements.FREE_SHARED, {"lease_id": row.id, "mib": row.memory_mib})
    run(connection, statements.UNMARK_LEASE_GPUS, {"ids": ids})
    return ids


def lose_jobs(
    database: Database,
    connection: Connection,
    lease_ids: Sequence[int],
    policy: LossPolicy,
    why: FailureClass,
    *,
    epoch: int | None = None,
    none_ran: bool = False,
) -> int:
    """Have the jobs that ran under ended leases run again, or make them dead letters.

    Of those in one line the first one ran, and counts the loss; the others waited behind it (docs/decisions/0018).
    ``none_ran``: their worker never knew that it had claimed them.
    """
    rows = database.run(connection, OPEN_ATTEMPTS, {"ids": list(lease_ids)}).all()
    by_node: dict[str, list[Finish]] = defaultdict(list)
    heads: set[int] = set()
    for row in rows:
        forgiven = none_ran or row.lease_id in heads
        heads.add(row.lease_id)
        last = not forgiven and row.lost_count + 1 >= policy.max_lost
        finish = Finish(
            job_seq=row.job_seq,
            attempt=row.number,
            lease_id=row.lease_id,
            event=JobEvent.BURY if last else JobEvent.LOSE,
            error="its worker was lost" + (f" for the {policy.max_lost}th time" if last else ""),
            failure_class=why,
            delay_seconds=policy.delay.total_seconds(),
            forgiven=forgiven,
        )
        by_node[row.node].append(heed_cancel(finish) if row.cancelling else finish)
    for node, finishes in by_node.items():
        end_attempts(database, connection, node, finishes, epoch=epoch)
    return len(rows)


def _count(database: Database, connection: Connection, node: str | None, finishes: Sequence[Finish]) -> None:
    lost = sum(finish.event in (JobEvent.LOSE, JobEvent.BURY) and not finish.forgiven for finish in finishes)
    retried = sum(finish.event is JobEvent.RETRY for finish in finishes)
    raise_total(database, connection, Total.ATTEMPTS_LOST, lost, label=node)
    raise_total(database, connection, Total.ATTEMPTS_RETRIED, retried, label=node)


def _event(finish: Finish) -> JobEvent:
    return finish.event


def _succeed(database: Database, connection: Connection, finishes: Sequence[Finish]) -> None:
    if not finishes:
        return
    run = database.run
    run(connection, statements.SUCCEED_EVENTS, {"seqs": [finish.job_seq for finish in finishes]})
    for part in dump_parts(map(_success_row, finishes)):
        run(connection, statements.CLOSE_SUCCEEDED, {"rows": part})
    results = {finish.job_seq: _stored_result(finish) for finish in finishes}
    alike = set(results.values())
    if len(alike) == 1 and alike.isdisjoint({_TOO_LARGE}):
        values = {"seqs": list(results), "result": alike.pop()}
        run(connection, statements.SUCCEED_JOBS_ALIKE, values)
        return
    rows = [
        {"seq": seq, "result": None, "reason": f"its result is larger than {LARGEST_RESULT} bytes and was not stored"}
        if result is _TOO_LARGE
        else {"seq": seq, "result": result, "reason": None}
        for seq, result in results.items()
    ]
    for part in dump_parts(rows):
        run(connection, statements.SUCCEED_JOBS, {"rows": part})


def _stored_result(finish: Finish) -> str | None:
    text = None if finish.result is None else dump(finish.result)
    return _TOO_LARGE if text is not None and len(text) > LARGEST_RESULT else text


def _end_row(finish: Finish) -> dict[str, Any]:
    error = storable(finish.error)
    reason = (error or "").splitlines()[:1]
    result = _stored_result(finish)
    return {
        "seq": finish.job_seq,
        "state": next_state(JobState.RUNNING, finish.event).value,
        "exit_code": finish.exit_code,
        "error": error,
        "reason": reason[0][:512] if reason else None,
        "failure_class": finish.failure_class.value if finish.failure_class else None,
        "result": None if result is _TOO_LARGE else result,
        "payload": None if finish.payload is None else dump(finish.payload),
        "lost": int(finish.event in (JobEvent.LOSE, JobEvent.BURY) and not finish.forgiven),
        "delay": finish.delay_seconds,
        "given_back": _RETURNED.get(finish.event, 0),
        "forgiven": int(finish.event is JobEvent.REQUEUE or (finish.event is JobEvent.LOSE and finish.forgiven)),
    }


def _success_row(finish: Finish) -> dict[str, Any]:
    return {
        "q": finish.job_seq,
        "n": finish.attempt,
        "l": finish.lease_id,
        "e": stored_instant(finish.ended_at),
        "s": stored_instant(finish.started_at),
        "p": finish.pid,
        "m": finish.peak_memory_mib,
        "v": finish.peak_gpu_memory_mib,
        "i": finish.isolation,
        "g": finish.gpu_seconds,
        "b": finish.gpu_busy_seconds,
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
        "error": storable(finish.error),
        "peak_memory_mib": finish.peak_memory_mib,
        "peak_gpu_memory_mib": finish.peak_gpu_memory_mib,
        "isolation": finish.isolation,
        "gpu_seconds": finish.gpu_seconds,
        "gpu_busy_seconds": finish.gpu_busy_seconds,
    }
