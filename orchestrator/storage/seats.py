"""Jobs that are granted by their own submit: a runner of a pool has their model and nothing to do.

The submit's transaction claims the job for the lease of that runner, so that its worker, when the entry comes, has only
to ask whether the lease still stands: one read, where a claim is a transaction. An entry that never comes leaves a job
that runs nowhere: the worker gives back what has stood under its leases for a while and is unknown to it.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.job import JobKind
from orchestrator.domain.lease import Claim
from orchestrator.domain.wants import wants_from
from orchestrator.storage import statements
from orchestrator.storage.engine import Database
from orchestrator.storage.sql import Sql

#: An entry is taken for lost after so long.
DELIVERY_BOUND: Final = timedelta(seconds=5)

IDLE: Final = Sql(
    "SELECT r.lease_id, r.pool, r.model, p.tenant, l.node FROM worker_pool_runners r"
    " JOIN orchestrator_leases l ON l.id = r.lease_id AND l.state = 'active' AND l.expires_at > {now}"
    " JOIN worker_pools p ON p.name = r.pool WHERE r.leaving IS NULL AND r.asleep = 0 AND p.asleep = 0"
    " AND l.node IN :nodes"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_attempts a WHERE a.lease_id = r.lease_id AND a.ended_at IS NULL)"
    " ORDER BY r.lease_id",
    "nodes",
)
#: As a claim does, it reads lease, queue, host and policy under a lock in the statement that takes the job.
SEAT: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'running', attempt = attempt + 1, lease_id = :lease_id, node = :node,"
    " started_at = {now} WHERE seq = :seq AND state = 'queued'"
    " AND EXISTS (SELECT 1 FROM orchestrator_leases l WHERE l.id = :lease_id AND l.node = :node AND l.state = 'active'"
    " AND l.expires_at > {now})"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_queues q WHERE q.name = orchestrator_jobs.queue AND q.paused = 1)"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_policy WHERE safe_mode = 1)"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_nodes n WHERE n.name = :node AND n.drain = 1)"
    " AND (deadline IS NULL OR deadline > {now})"
)
STANDING: Final = Sql(
    f"SELECT {statements.CLAIMED_COLUMNS}, lease_id FROM orchestrator_jobs"  # noqa: S608 - names of columns
    " WHERE seq IN :seqs AND state = 'running' AND EXISTS (SELECT 1 FROM orchestrator_leases l"
    " WHERE l.id = orchestrator_jobs.lease_id AND l.node = :node AND l.state = 'active' AND l.expires_at > {now})",
    "seqs",
)
UNKNOWN: Final = Sql(
    "SELECT a.job_seq, a.number, a.lease_id FROM orchestrator_attempts a JOIN worker_pool_runners r"
    " ON r.lease_id = a.lease_id WHERE a.lease_id IN :ids AND a.ended_at IS NULL AND a.claimed_at < {now_minus:bound}",
    "ids",
)


def take_seats(database: Database, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Have new jobs that are queued for a host run under a lease of it, those for which a runner is idle.

    Args:
        database: The database.
        connection: To it.
        rows: Of jobs as they were just inserted; of one that got a seat, ``state`` and ``lease_id`` change.
    """
    asking = [row for row in rows if row["state"] == "queued" and row["node"] and row["kind"] == JobKind.TASK.value]
    if not asking:
        return
    idle = list(database.run(connection, IDLE, {"nodes": sorted({row["node"] for row in asking})}))
    chosen = []
    for row in asking:
        seat = next((seat for seat in idle if _fits(row, seat)), None)
        if seat is not None:
            idle.remove(seat)
            chosen.append((row, seat.lease_id))
    seats = [(SEAT, {"seq": row["seq"], "node": row["node"], "lease_id": lease_id}) for row, lease_id in chosen]
    for (row, lease_id), answer in zip(chosen, database.run_together(connection, seats), strict=True):
        if answer.rowcount:
            row |= {"state": "running", "lease_id": lease_id}


def open_attempts(database: Database, connection: Connection, seqs: Collection[int]) -> None:
    """Open the attempts of jobs that got a seat, after what their submit has written of them."""
    if seqs:
        values = {"seqs": list(seqs)}
        steps = [(statements.INSERT_ATTEMPTS, values), (statements.CLAIM_EVENTS, values)]
        database.run_together(connection, steps)


def standing_jobs(database: Database, node: str, claims: Sequence[Claim]) -> Mapping[int, Any]:
    """Return the rows of jobs that run under the lease that their claim names, and that a host of this name holds."""
    named = {seq: claim.lease_id for claim in claims for seq in claim.job_seqs}
    rows = database.look(STANDING, {"seqs": list(named), "node": node})
    return {row.seq: row for row in rows if row.lease_id == named[row.seq]}


def _fits(row: Mapping[str, Any], seat: Any) -> bool:
    wants = wants_from(row["wants"])
    here = seat.node == row["node"] and seat.tenant in (None, row["tenant"])
    return here and wants is not None and wants.model in (seat.pool, seat.model)
