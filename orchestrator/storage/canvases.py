"""Jobs of canvases: those that wait for the tasks before them, and how a canvas ends as a whole.

A blocked job has a row in ``orchestrator_needs`` for each task that it waits for; with the end of its waiting they go.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.canvas import CanvasCancelled, Need, dependents
from orchestrator.domain.job import JobState, NewJob
from orchestrator.errors import UnknownJob
from orchestrator.storage import statements
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump
from orchestrator.storage.sql import Sql

#: Jobs of a canvas that one transaction cancels.
CANCEL_BATCH: Final = 500
WORDS: Final = {"failed": "failed", "cancelled": "was cancelled", "dead_letter": "could not be processed"}

# The caller of a job is locked: whoever cancels its canvas waits until what it calls is there to be seen, or is first.
CALLERS: Final = Sql("SELECT id, root_id FROM orchestrator_jobs WHERE id IN :ids {for_share}", "ids")
STOPPED: Final = Sql("SELECT id, reason FROM orchestrator_cancelled_canvases WHERE id IN :ids", "ids")
# Locked whatever its state, which the WHERE must not name: rows that do not match are let go. So whoever ends a job at
# this moment either sees those that wait for it, or is seen.
NEEDED: Final = Sql("SELECT seq, state FROM orchestrator_jobs WHERE id IN :ids {for_share}", "ids")
INSERT_NEED: Final = Sql(
    "INSERT INTO orchestrator_needs (job_seq, needs_id) VALUES (:seq, :needs_id) ON CONFLICT DO NOTHING",
    mysql="INSERT IGNORE INTO orchestrator_needs (job_seq, needs_id) VALUES (:seq, :needs_id)",
)
DELETE_NEEDS: Final = Sql("DELETE FROM orchestrator_needs WHERE job_seq IN :seqs", "seqs")
NEEDS: Final = Sql(
    "SELECT b.id, n.needs_id, j.state FROM orchestrator_jobs b JOIN orchestrator_needs n ON n.job_seq = b.seq"
    " LEFT JOIN orchestrator_jobs j ON j.id = n.needs_id WHERE b.id IN :ids ORDER BY b.seq, n.needs_id",
    "ids",
)
RELEASE: Final = Sql(
    "UPDATE orchestrator_jobs SET state = :state, name = :name, task = :task, queue = :queue, tenant = :tenant,"
    " submitted_by = :submitted_by, priority = :priority, payload = :payload, headers = :headers, digest = :digest,"
    " gpus = :gpus, gpu_memory_mib = :gpu_memory_mib, wants = :wants, time_limit_s = :time_limit_s,"
    " soft_time_limit_s = :soft_time_limit_s, grace_s = :grace_s, max_attempts = :max_attempts, retry_on = :retry_on,"
    " run_at = :run_at,"
    " deadline = :deadline, idempotency_key = :idempotency_key, parent_id = COALESCE(:parent_id, parent_id),"
    " request_hash = :request_hash, traceparent = COALESCE(:traceparent, traceparent),"
    " queued_at = :queued_at, reason = NULL"
    " WHERE seq = :seq AND state = 'blocked'"
)
#: Of jobs that ended otherwise than well: which canvases have jobs that wait for them.
WAITED_FOR: Final = Sql(
    "SELECT DISTINCT e.id, e.state, b.root_id FROM orchestrator_jobs e"
    " JOIN orchestrator_needs n ON n.needs_id = e.id JOIN orchestrator_jobs b ON b.seq = n.job_seq"
    " WHERE e.seq IN :seqs AND e.state IN ('failed', 'cancelled', 'dead_letter')",
    "seqs",
)
WAITED_FOR_TASKS: Final = Sql(
    "SELECT DISTINCT n.needs_id AS id, b.root_id FROM orchestrator_needs n"
    " JOIN orchestrator_jobs b ON b.seq = n.job_seq WHERE n.needs_id IN :ids",
    "ids",
)
EDGES: Final = Sql(
    "SELECT b.seq, b.id, n.needs_id FROM orchestrator_jobs b JOIN orchestrator_needs n ON n.job_seq = b.seq"
    " WHERE b.root_id IN :roots AND b.state = 'blocked'",
    "roots",
)
END_BLOCKED: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'cancelled', reason = :reason, finished_at = {now}"
    " WHERE seq IN :seqs AND state = 'blocked'",
    "seqs",
)
LOCK_BLOCKED: Final = Sql(
    "SELECT seq FROM orchestrator_jobs WHERE seq IN :seqs AND state = 'blocked' {for_update}", "seqs"
)
EVENTS: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, job_seq, epoch, data)"
    " SELECT {now}, :kind, seq, :epoch, :data FROM orchestrator_jobs WHERE seq IN :seqs",
    "seqs",
)
#: Blocked jobs whose need ended without them being told, because another version or hand wrote that end.
FORGOTTEN: Final = Sql(
    "SELECT DISTINCT e.seq FROM orchestrator_needs n JOIN orchestrator_jobs e ON e.id = n.needs_id"
    " WHERE e.state IN ('failed', 'cancelled', 'dead_letter') LIMIT :limit"
)
FORGET_CANCELLED: Final = Sql("DELETE FROM orchestrator_cancelled_canvases WHERE at < {now_minus:age}")

# Cancelling

FIND: Final = Sql("SELECT root_id, id FROM orchestrator_jobs WHERE id = :id")
FIND_MEMBER: Final = Sql(
    "SELECT root_id FROM orchestrator_jobs WHERE root_id = :id OR group_id = :id ORDER BY root_id = :id DESC LIMIT 1"
)
MARK: Final = Sql(
    "INSERT INTO orchestrator_cancelled_canvases (id, at, reason) VALUES (:id, {now}, :reason) ON CONFLICT DO NOTHING",
    mysql="INSERT IGNORE INTO orchestrator_cancelled_canvases (id, at, reason) VALUES (:id, {now}, :reason)",
)
_LEFT: Final = (
    "SELECT seq FROM orchestrator_jobs WHERE {which} AND (state IN ('blocked', 'scheduled', 'pending', 'queued')"
    " OR (state = 'running' AND cancel_requested_at IS NULL)) ORDER BY seq LIMIT :limit"
)
LEFT_OF_TREE: Final = Sql(_LEFT.replace("{which}", "(root_id = :id OR id = :id)"))
LEFT_OF_GROUP: Final = Sql(_LEFT.replace("{which}", "group_id = :id"))
LOCK_READY: Final = Sql("SELECT job_seq FROM orchestrator_ready WHERE job_seq IN :seqs {for_update}", "seqs")
LOCK_SCHEDULED: Final = Sql("SELECT job_seq FROM orchestrator_scheduled WHERE job_seq IN :seqs {for_update}", "seqs")
LOCK_JOBS: Final = Sql(
    "SELECT seq, id, state, cancel_requested_at IS NOT NULL AS asked FROM orchestrator_jobs WHERE seq IN :seqs"
    " {for_update}",
    "seqs",
)
CANCEL_JOBS: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'cancelled', reason = :reason, finished_at = {now},"
    " cancel_requested_at = {now}"
    " WHERE seq IN :seqs AND state IN ('blocked', 'scheduled', 'pending', 'queued')",
    "seqs",
)
ASK_JOBS: Final = Sql(
    "UPDATE orchestrator_jobs SET cancel_requested_at = {now}"
    " WHERE seq IN :seqs AND state = 'running' AND cancel_requested_at IS NULL",
    "seqs",
)


def placed(
    database: Database, connection: Connection, jobs: Sequence[NewJob]
) -> tuple[list[NewJob], Mapping[str, str]]:
    """Return the jobs with the roots of the canvases that they belong to, and why some of them must not start.

    A job belongs where the task that called it does: the root that Celery names is only that of one branch, when a
    group was called from outside.
    """
    asked = {task_id for job in jobs for task_id in (job.parent_id, job.root_id) if task_id is not None}
    if not asked:
        return list(jobs), {}
    rows = database.run(connection, CALLERS, {"ids": sorted(asked)}).all()
    roots: dict[str, str] = {row.id: row.root_id or row.id for row in rows}
    found = []
    for job in jobs:
        root = roots.get(job.parent_id or "") or roots.get(job.root_id or "") or job.root_id or job.parent_id
        root = root if job.parent_id or job.root_id else None
        if root is not None:
            roots.setdefault(job.id, root)
        found.append(replace(job, root_id=root))
    ids: set[str] = {canvas for job in found for canvas in (job.root_id, job.group_id) if canvas is not None}
    stopped = {row.id: row.reason for row in database.run(connection, STOPPED, {"ids": sorted(ids)})}
    reasons = {
        job.id: stopped.get(job.root_id or "") or stopped[job.group_id or ""]
        for job in found
        if (job.root_id in stopped or job.group_id in stopped)
    }
    return found, reasons


def block(database: Database, connection: Connection, needs: Mapping[int, Collection[str]]) -> None:
    """Write down what blocked jobs, by seq, wait for; end those that wait for what has ended otherwise than well."""
    rows = [{"seq": seq, "needs_id": needs_id} for seq, ids in needs.items() for needs_id in ids]
    if not rows:
        return
    database.run(connection, INSERT_NEED, rows)
    ids = sorted({needs_id for wanted in needs.values() for needs_id in wanted})
    found = database.run(connection, NEEDED, {"ids": ids}).all()
    end_dependents(database, connection, [row.seq for row in found if row.state in WORDS])


def block_further(database: Database, connection: Connection, needs: Mapping[int, Collection[str]]) -> None:
    """Have jobs that are stored wait for more, as far as they are still blocked."""
    if needs:
        blocked = database.run(connection, LOCK_BLOCKED, {"seqs": sorted(needs)}).scalars().all()
        block(database, connection, {seq: needs[seq] for seq in blocked})


def needs_of(database: Database, connection: Connection, job_ids: Collection[str]) -> Mapping[str, Sequence[Need]]:
    """Return what blocked jobs wait for."""
    found: dict[str, list[Need]] = {}
    for row in database.run(connection, NEEDS, {"ids": sorted(job_ids)}) if job_ids else ():
        found.setdefault(row.id, []).append(Need(row.needs_id, JobState(row.state) if row.state else None))
    return found


def end_dependents(
    database: Database, connection: Connection, seqs: Collection[int], *, epoch: int | None = None
) -> int:
    """End the blocked jobs that wait for these jobs, as far as they ended otherwise than well; return how many."""
    if not seqs:
        return 0
    found = database.run(connection, WAITED_FOR, {"seqs": sorted(seqs)}).all()
    origins = {row.id: f"needed {row.id}, which {WORDS[row.state]}" for row in found}
    return _end_behind(database, connection, origins, {row.root_id for row in found}, epoch)


def end_dependents_of_tasks(
    database: Database, connection: Connection, task_ids: Collection[str], words: str, *, epoch: int | None = None
) -> int:
    """End the blocked jobs that wait for tasks, jobs or not, that are known not to end well; return how many."""
    if not task_ids:
        return 0
    found = database.run(connection, WAITED_FOR_TASKS, {"ids": sorted(task_ids)}).all()
    origins = {row.id: f"needed {row.id}, which {words}" for row in found}
    return _end_behind(database, connection, origins, {row.root_id for row in found}, epoch)


def end_forgotten(database: Database, connection: Connection, limit: int, *, epoch: int) -> int:
    """End blocked jobs that wait for what has ended otherwise than well."""
    seqs = database.run(connection, FORGOTTEN, {"limit": limit}).scalars().all()
    return end_dependents(database, connection, list(seqs), epoch=epoch)


def _end_behind(
    database: Database, connection: Connection, origins: Mapping[str, str], roots: set[str], epoch: int | None
) -> int:
    if not origins:
        return 0
    edges = database.run(connection, EDGES, {"roots": sorted(roots)}).all()
    seq_of = {edge.id: edge.seq for edge in edges}
    ended = 0
    for origin, reason in sorted(origins.items()):
        behind = dependents(((edge.id, edge.needs_id) for edge in edges), {origin})
        seqs = sorted(seq_of.pop(job_id) for job_id in behind if job_id in seq_of)
        if not seqs:
            continue
        seqs = list(database.run(connection, LOCK_BLOCKED, {"seqs": seqs}).scalars())
        database.run(connection, END_BLOCKED, {"seqs": seqs, "reason": reason[:512]})
        database.run(connection, DELETE_NEEDS, {"seqs": seqs})
        data = dump({"needed": origin})
        database.run(connection, EVENTS, {"kind": "cancel", "seqs": seqs, "epoch": epoch, "data": data})
        ended += len(seqs)
    return ended


def cancel_new(database: Database, connection: Connection, reasons: Mapping[int, str]) -> None:
    """Cancel jobs, by seq, that were stored blocked because their canvas was cancelled before they came."""
    for seq, reason in reasons.items():
        database.run(connection, CANCEL_JOBS, {"seqs": [seq], "reason": reason})
        database.run(connection, DELETE_NEEDS, {"seqs": [seq]})
        values = {"kind": "cancel", "seqs": [seq], "epoch": None, "data": dump({"reason": reason})}
        database.run(connection, EVENTS, values)


def cancel_canvas(database: Database, canvas_id: str, *, whole: bool, by: str, reason: str) -> CanvasCancelled:
    """Cancel the members of a canvas, or of one group of it; see the port."""
    words = f"cancelled with its {'canvas' if whole else 'group'} by {by}: {reason}"[:512]
    root = database.transaction(lambda connection: _mark(database, connection, canvas_id, words, whole=whole))
    cancelled: list[str] = []
    stopping: list[str] = []
    left = LEFT_OF_TREE if whole else LEFT_OF_GROUP
    data = dump({"by": by, "reason": reason})
    while True:
        count, ended, asked = database.transaction(lambda c: _cancel_batch(database, c, left, root, words, data))
        cancelled += ended
        stopping += asked
        if not count:  # not before: while a batch waited for a member's row, that member may have called another
            return CanvasCancelled(root, tuple(cancelled), tuple(stopping))


def _mark(database: Database, connection: Connection, canvas_id: str, words: str, *, whole: bool) -> str:
    root: str | None = None
    if whole:
        job = database.run(connection, FIND, {"id": canvas_id}).first()
        root = (job.root_id or job.id) if job is not None else None
    if root is None:
        member = database.run(connection, FIND_MEMBER, {"id": canvas_id}).first()
        if member is None:
            raise UnknownJob(canvas_id)
        root = member.root_id if whole and member.root_id else canvas_id
    database.run(connection, MARK, {"id": root, "reason": words})
    return str(root)


def _cancel_batch(
    database: Database, connection: Connection, left: Sql, canvas_id: str, words: str, data: str
) -> tuple[int, list[str], list[str]]:
    run = database.run
    seqs = list(run(connection, left, {"id": canvas_id, "limit": CANCEL_BATCH}).scalars())
    if not seqs:
        return 0, [], []
    run(connection, LOCK_READY, {"seqs": seqs}).all()
    run(connection, LOCK_SCHEDULED, {"seqs": seqs}).all()
    rows: Sequence[Any] = run(connection, LOCK_JOBS, {"seqs": seqs}).all()
    waiting = {row.seq: row.id for row in rows if row.state in ("blocked", "scheduled", "pending", "queued")}
    running = {row.seq: row.id for row in rows if row.state == "running" and not row.asked}
    if waiting:
        values: dict[str, Any] = {"seqs": sorted(waiting)}
        run(connection, CANCEL_JOBS, values | {"reason": words})
        for statement in (statements.DELETE_READY, statements.DELETE_SCHEDULED, DELETE_NEEDS):
            run(connection, statement, values)
        run(connection, EVENTS, values | {"kind": "cancel", "epoch": None, "data": data})
    if running:
        run(connection, ASK_JOBS, {"seqs": sorted(running)})
        values = {"seqs": sorted(running), "kind": "ask_cancel", "epoch": None, "data": data}
        run(connection, EVENTS, values)
    end_dependents_of_tasks(database, connection, {*waiting.values(), *running.values()}, "was cancelled")
    return len(seqs), list(waiting.values()), list(running.values())
