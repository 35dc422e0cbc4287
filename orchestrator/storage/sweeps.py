"""The writes of the leader's sweeps, each fenced by its epoch in the same transaction."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from orchestrator import failpoints
from orchestrator.domain.job import FailureClass, JobEvent
from orchestrator.errors import NotLeading
from orchestrator.metric_ports import Total
from orchestrator.ports import LossPolicy
from orchestrator.storage import canvases, statements
from orchestrator.storage.endings import end_leases, lose_jobs
from orchestrator.storage.engine import Database
from orchestrator.storage.placing import withdraw
from orchestrator.storage.sql import Sql
from orchestrator.storage.totals import raise_total

Result = TypeVar("Result")

EPOCH_FOR_SHARE: Final = Sql(
    "SELECT epoch FROM orchestrator_leadership WHERE name = 'sweeps' AND epoch = :epoch {for_share}"
)
SET_WINDOW: Final = Sql("UPDATE orchestrator_queues SET `window` = :window WHERE name = :name AND `window` <> :window")
DUE_ENTRIES: Final = Sql(
    "SELECT job_seq FROM orchestrator_ready WHERE publish_at <= {now} ORDER BY publish_at, job_seq LIMIT :limit"
)
NOTE_ENTRY: Final = Sql(
    "UPDATE orchestrator_ready SET entry_id = :entry_id, publish_at = {now_plus:recheck}"
    " WHERE job_seq = :seq AND publish_at IS NOT NULL"
)
FORGET_ENTRIES: Final = Sql(
    "UPDATE orchestrator_ready SET entry_id = NULL, publish_at = {now} WHERE publish_at IS NOT NULL"
)
DUE_SCHEDULED: Final = Sql(
    "SELECT job_seq FROM orchestrator_scheduled WHERE run_at <= {now} ORDER BY run_at LIMIT :limit {for_update}"
)
RELEASE_JOBS: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'pending' WHERE seq IN :seqs AND state = 'scheduled'", "seqs"
)
PAST_DEADLINE: Final = Sql(
    "SELECT job_seq FROM orchestrator_ready WHERE deadline IS NOT NULL AND deadline <= {now} LIMIT :limit {for_update}"
)
EXPIRE_JOBS: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'cancelled', reason = 'its deadline passed before it started',"
    " finished_at = {now}"
    " WHERE seq IN :seqs AND state IN ('pending', 'queued')",
    "seqs",
)
EXPIRED_LEASES: Final = Sql(
    "SELECT id, renewals FROM orchestrator_leases WHERE state = 'active' AND expires_at < {now_minus:grace}"
    " ORDER BY expires_at LIMIT :limit"
)
STILL_EXPIRED: Final = Sql(
    "SELECT id FROM orchestrator_leases WHERE id = :id AND renewals = :renewals AND state = 'active'"
    " AND expires_at < {now_minus:grace} {for_update}"
)
#: Lines are numbered as they are written, so the oldest are found by number and need no index by time.
OLD_AUDIT: Final = Sql(
    "SELECT seq FROM (SELECT seq, at FROM orchestrator_audit ORDER BY seq LIMIT :limit) AS oldest"
    " WHERE at < {now_minus:age}"
)
DELETE_AUDIT: Final = Sql("DELETE FROM orchestrator_audit WHERE seq IN :seqs", "seqs")
SILENT_NODES: Final = Sql(
    "SELECT name FROM orchestrator_nodes WHERE state <> 'lost' AND heartbeat_at < {now_minus:silent} {for_update}"
)
MARK_LOST: Final = Sql("UPDATE orchestrator_nodes SET state = 'lost' WHERE name IN :names", "names")
#: Jobs on their way to a host that takes none (silent, ended in order, or draining), or that must not start now.
STRANDED: Final = Sql(
    "SELECT job_seq FROM orchestrator_ready WHERE publish_at IS NOT NULL AND ((node IS NOT NULL"
    " AND node NOT IN (SELECT name FROM orchestrator_nodes WHERE state = 'up'))"
    " OR queue IN (SELECT name FROM orchestrator_queues WHERE paused = 1)"
    " OR EXISTS (SELECT 1 FROM orchestrator_policy WHERE safe_mode = 1)) LIMIT :limit"
)
#: Most jobs that one pass withdraws.
WITHDRAW_BATCH: Final = 1000
NODE_EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, node, epoch) VALUES ({now}, :kind, :node, :epoch)")
LEASE_ENDED: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, lease_id, epoch) VALUES ({now}, :kind, :lease_id, :epoch)"
)
CANDIDATES: Final = Sql(
    "SELECT job_seq, queue, `rank` AS `rank`, tenant, gpus, gpu_memory_mib, wants FROM orchestrator_ready"
    " WHERE queue = :queue AND publish_at IS NULL AND `rank` < 100 ORDER BY `rank`, job_seq LIMIT :limit"
)
ADMITTED: Final = Sql(
    "SELECT MIN(job_seq) AS seq, COUNT(*) AS count, queue, gpus, gpu_memory_mib, wants, node"
    " FROM orchestrator_ready"
    " WHERE publish_at IS NOT NULL AND (:node IS NULL OR node IS NULL OR node = :node)"
    " GROUP BY queue, gpus, gpu_memory_mib, wants, node"
)
HOSTS: Final = Sql(
    "SELECT n.name, n.state, n.queues, n.cpu_slots, n.look_ahead, n.labels, n.cpus, n.memory_mib,"
    " (SELECT COALESCE(SUM(l.cpus), 0) FROM orchestrator_leases l WHERE l.node = n.name AND l.state = 'active')"
    "  AS cpus_taken,"
    " (SELECT COALESCE(SUM(l.host_memory_mib), 0) FROM orchestrator_leases l WHERE l.node = n.name"
    "  AND l.state = 'active') AS memory_taken_mib,"
    " n.heartbeat_at > {now_minus:bound} AS live,"
    " (SELECT COUNT(*) FROM orchestrator_leases l WHERE l.node = n.name AND l.state = 'active'"
    "  AND NOT EXISTS (SELECT 1 FROM orchestrator_lease_gpus g WHERE g.lease_id = l.id)) AS cpu_jobs"
    " FROM orchestrator_nodes n WHERE (:node IS NULL OR n.name = :node) AND n.state <> 'lost' ORDER BY n.name"
)
OLD_JOBS: Final = Sql(
    "SELECT seq FROM orchestrator_jobs WHERE finished_at IS NOT NULL AND finished_at < {now_minus:age} LIMIT :limit"
)
OLD_LEASES: Final = Sql(
    "SELECT l.id FROM orchestrator_leases l WHERE l.state <> 'active' AND l.ended_at < {now_minus:age}"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_attempts a WHERE a.lease_id = l.id) LIMIT :limit"
)
#: What tells of hosts and leases, not of a job. The leaders' first lines stay: an epoch is told apart by them.
OLD_EVENTS: Final = Sql(
    "SELECT seq FROM orchestrator_events WHERE job_seq IS NULL AND kind <> 'leader' AND at < {now_minus:age}"
    " ORDER BY seq LIMIT :limit"
)


def fenced(database: Database, epoch: int, unit: Callable[[Connection], Result]) -> Result:
    """Run a unit of work in a transaction in which no other leader can take over.

    Raises:
        NotLeading: If the epoch is not the current one; nothing was written.
    """

    def checked(connection: Connection) -> Result:
        if database.run(connection, EPOCH_FOR_SHARE, {"epoch": epoch}).first() is None:
            raise NotLeading(epoch)
        result = unit(connection)
        failpoints.reach("sweep.in_transaction")
        return result

    return database.transaction(checked)


def release_due(database: Database, connection: Connection, limit: int, *, epoch: int) -> int:
    """Move scheduled jobs whose time has come to pending; cancel waiting jobs past their deadline."""
    run = database.run
    due = list(run(connection, DUE_SCHEDULED, {"limit": limit}).scalars())
    if due:
        run(connection, RELEASE_JOBS, {"seqs": due})
        run(connection, statements.DELETE_SCHEDULED, {"seqs": due})
        run(connection, statements.READY_AGAIN, {"seqs": due})
        released = {"seqs": due, "kind": JobEvent.RELEASE.value, "node": None, "epoch": epoch}
        run(connection, statements.JOB_EVENTS, released)
    late = list(run(connection, PAST_DEADLINE, {"limit": limit}).scalars())
    if late:
        run(connection, EXPIRE_JOBS, {"seqs": late})
        run(connection, statements.DELETE_READY, {"seqs": late})
        expired = {"seqs": late, "kind": JobEvent.CANCEL.value, "node": None, "epoch": epoch}
        run(connection, statements.JOB_EVENTS, expired)
        canvases.end_dependents(database, connection, late, epoch=epoch)
    return len(due) + len(late)


def expire(
    database: Database, connection: Connection, candidates: Sequence[tuple[int, int]], policy: LossPolicy, *, epoch: int
) -> int:
    """End leases that are still past their end with the same renewals; what ran under them is lost."""
    run = database.run
    dead: list[int] = []
    for lease_id, renewals in sorted(candidates):
        values = {"id": lease_id, "renewals": renewals, "grace": policy.grace.total_seconds()}
        dead += run(connection, STILL_EXPIRED, values).scalars()
    ended = end_leases(database, connection, dead, "expired") if dead else []
    if ended:
        lose_jobs(database, connection, ended, policy, FailureClass.LEASE_EXPIRED, epoch=epoch)
        rows = [{"kind": "lease_expired", "lease_id": lease_id, "epoch": epoch} for lease_id in ended]
        run(connection, LEASE_ENDED, rows)
        raise_total(database, connection, Total.LEASES_EXPIRED, len(ended))
    return len(ended)


def lose_nodes(database: Database, connection: Connection, silent_for: timedelta, *, epoch: int) -> list[str]:
    """Mark silent hosts as lost; withdraw what was admitted for hosts that take nothing, whatever the reason."""
    run = database.run
    names = sorted(run(connection, SILENT_NODES, {"silent": silent_for.total_seconds()}).scalars())
    if names:
        run(connection, MARK_LOST, {"names": names})
        run(connection, NODE_EVENT, [{"kind": "node_lost", "node": name, "epoch": epoch} for name in names])
    stranded = run(connection, STRANDED, {"limit": WITHDRAW_BATCH}).scalars().all()
    if stranded:
        withdraw(database, connection, stranded, epoch=epoch)
    return names


def prune(database: Database, connection: Connection, older_than: timedelta, limit: int) -> int:
    """Delete jobs that ended long ago, with all that is theirs; leases that no attempt names; events of no job."""
    values = {"age": older_than.total_seconds(), "limit": limit}
    database.run(connection, canvases.FORGET_CANCELLED, {"age": older_than.total_seconds()})
    pruned = 0
    for find, deletions in _PRUNED:
        seqs: list[Any] = list(database.run(connection, find, values).scalars())
        pruned += len(seqs)
        for statement in deletions if seqs else ():
            database.run(connection, statement, {"seqs": seqs})
    return pruned


def prune_audit(database: Database, connection: Connection, older_than: timedelta, limit: int) -> int:
    """Delete lines of the audit that are old enough, the oldest first."""
    values = {"age": older_than.total_seconds(), "limit": limit}
    seqs = list(database.run(connection, OLD_AUDIT, values).scalars())
    if seqs:
        database.run(connection, DELETE_AUDIT, {"seqs": seqs})
    return len(seqs)


#: All that is a job's, and the job.
DELETE_JOBS: Final = tuple(
    Sql(f"DELETE FROM {table} WHERE {column} IN :seqs", "seqs")  # noqa: S608 - the names stand below
    for table, column in (
        ("orchestrator_logs", "job_seq"),
        ("orchestrator_attempts", "job_seq"),
        ("orchestrator_events", "job_seq"),
        ("orchestrator_dead_letters", "job_seq"),
        ("orchestrator_jobs", "seq"),
    )
)
_DELETE_LEASES: Final = (
    Sql("DELETE FROM orchestrator_lease_gpus WHERE lease_id IN :seqs", "seqs"),
    Sql("DELETE FROM orchestrator_leases WHERE id IN :seqs", "seqs"),
)
_DELETE_EVENTS: Final = (Sql("DELETE FROM orchestrator_events WHERE seq IN :seqs", "seqs"),)
_PRUNED: Final = ((OLD_JOBS, DELETE_JOBS), (OLD_LEASES, _DELETE_LEASES), (OLD_EVENTS, _DELETE_EVENTS))
