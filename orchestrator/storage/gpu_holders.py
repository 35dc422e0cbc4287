"""Who has GPUs now: jobs through their attempts, worker pools, and holders without a job."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.cluster import GpuHolder
from orchestrator.storage.engine import Database
from orchestrator.storage.sql import Sql

#: The first of a line's jobs is the one that runs; those behind it have been claimed ahead.
HOLDERS: Final = Sql(
    "SELECT g.gpu_uuid, l.id AS lease_id, l.memory_mib, j.id AS job_id,"
    " COALESCE(j.tenant, h.tenant, p.tenant) AS tenant, h.holder, r.pool"
    " FROM orchestrator_leases l JOIN orchestrator_lease_gpus g ON g.lease_id = l.id"
    " LEFT JOIN orchestrator_attempts a ON a.lease_id = l.id AND a.ended_at IS NULL"
    " LEFT JOIN orchestrator_jobs j ON j.seq = a.job_seq"
    " LEFT JOIN orchestrator_lease_holders h ON h.lease_id = l.id"
    " LEFT JOIN worker_pool_runners r ON r.lease_id = l.id LEFT JOIN worker_pools p ON p.name = r.pool"
    " WHERE l.state = 'active' ORDER BY l.id, a.claimed_at, a.job_seq"
)


def holders(database: Database, connection: Connection) -> Mapping[str, Sequence[GpuHolder]]:
    """Return the holders of every GPU that somebody has, the oldest lease first."""
    jobs: dict[tuple[str, int], list[str]] = defaultdict(list)
    first: dict[tuple[str, int], Any] = {}
    for row in database.run(connection, HOLDERS, {}):
        key = (row.gpu_uuid, row.lease_id)
        first.setdefault(key, row)
        if row.job_id is not None:
            jobs[key].append(row.job_id)
    found: dict[str, list[GpuHolder]] = defaultdict(list)
    for (uuid, lease_id), row in first.items():
        holder = row.holder if row.pool is None else f"pool:{row.pool}"
        held = GpuHolder(lease_id, row.memory_mib, tuple(jobs[uuid, lease_id]), row.tenant, holder)
        found[uuid].append(held)
    return found
