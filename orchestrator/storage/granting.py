"""Taking GPUs for a new lease: all that a grant names, or none."""

from datetime import timedelta

from sqlalchemy import Connection

from orchestrator.domain.job import LeaseMode
from orchestrator.domain.lease import LeaseGrant
from orchestrator.storage import statements
from orchestrator.storage.engine import Database


def take_gpus(database: Database, connection: Connection, node: str, grant: LeaseGrant, ttl: timedelta) -> int | None:
    """Take every GPU of the grant under a new lease and return it; None if one is not free: then nothing is taken."""
    run = database.run
    values = {"node": node, "mode": grant.mode.value, "memory_mib": grant.memory_mib, "ttl": ttl.total_seconds()}
    values |= {"cpus": grant.cpus, "host_memory_mib": grant.host_memory_mib}
    lease_id = int(run(connection, statements.INSERT_LEASE, values).lastrowid)
    if not grant.gpus:
        return lease_id
    uuids = sorted(grant.gpus)
    exclusive = grant.mode is LeaseMode.EXCLUSIVE
    wanted = {"lease_id": lease_id, "uuids": uuids, "node": node}
    if exclusive:
        taken = run(connection, statements.TAKE_EXCLUSIVE, wanted)
    else:
        taken = run(connection, statements.TAKE_SHARED, wanted | {"mib": grant.memory_mib})
    if taken.rowcount != len(uuids):
        if exclusive:
            run(connection, statements.FREE_EXCLUSIVE, {"ids": [lease_id]})
        # A shared grant names one GPU, so a short count means that nothing was taken.
        run(connection, statements.DELETE_LEASE, {"lease_id": lease_id})
        return None
    mark = 1 if exclusive else None
    run(connection, statements.INSERT_LEASE_GPUS, wanted | {"live_exclusive": mark})
    return lease_id
