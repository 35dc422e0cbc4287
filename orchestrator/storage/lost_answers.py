"""Find again what a commit has granted whose answer was lost.

Only a claim that was sent before may do so: its jobs are in no other claim of the same worker, so one that runs on this
host under a live lease was granted by it, and nobody has started it.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from orchestrator.domain.lease import Claim
from orchestrator.storage import statements
from orchestrator.storage.engine import Database
from orchestrator.storage.sql import Sql

RUNNING_HERE: Final = Sql(
    "SELECT j.seq, j.lease_id FROM orchestrator_jobs j JOIN orchestrator_leases l ON l.id = j.lease_id"
    " WHERE j.seq IN :seqs AND j.state = 'running' AND l.node = :node AND l.state = 'active' AND l.expires_at > {now}",
    "seqs",
)


def granted_before(
    database: Database, connection: Connection, node: str, claims: Sequence[Claim], ttl: timedelta
) -> dict[int, int]:
    """Return the jobs of repeated claims that were granted, as seq -> lease id, under leases that live another TTL.

    The worker counts its trust from this request on, so the leases are renewed by it.
    """
    seqs = [seq for claim in claims for seq in claim.job_seqs]
    if not seqs:
        return {}
    rows = database.run(connection, RUNNING_HERE, {"seqs": seqs, "node": node}).all()
    if not rows:
        return {}
    ids = sorted({row.lease_id for row in rows})
    database.run(connection, statements.RENEW, {"ids": ids, "node": node, "ttl": ttl.total_seconds()})
    live = set(database.run(connection, statements.LIVE_LEASES, {"ids": ids, "node": node}).scalars())
    return {row.seq: row.lease_id for row in rows if row.lease_id in live}
