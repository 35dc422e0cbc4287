"""Rows that disagree with each other, brought back into line.

No transaction of ours leaves such rows behind. They come of hands in the database, a restore of some tables, or a
fault; each would otherwise block a GPU or a job for ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from orchestrator.domain.job import FailureClass, LeaseMode
from orchestrator.ports import LossPolicy
from orchestrator.storage import statements
from orchestrator.storage.endings import lose_jobs
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import Row, dump
from orchestrator.storage.sql import Sql

#: Leases under which a job is said to run and that are over, or were never there.
ENDED_UNDER_JOBS: Final = Sql(
    "SELECT DISTINCT j.lease_id FROM orchestrator_jobs j WHERE j.state = 'running' AND NOT EXISTS"
    " (SELECT 1 FROM orchestrator_leases l WHERE l.id = j.lease_id AND l.state = 'active') LIMIT :limit"
)
GPUS: Final = Sql("SELECT uuid, node, exclusive_lease_id, reserved_mib FROM orchestrator_gpus")
GPUS_FOR_UPDATE: Final = Sql(
    "SELECT uuid, node, exclusive_lease_id, reserved_mib FROM orchestrator_gpus WHERE uuid IN :uuids {for_update}",
    "uuids",
)
HELD: Final = Sql(
    "SELECT g.gpu_uuid, l.id, l.mode, l.memory_mib FROM orchestrator_leases l"
    " JOIN orchestrator_lease_gpus g ON g.lease_id = l.id WHERE l.state = 'active'"
)
SET_GPU: Final = Sql(
    "UPDATE orchestrator_gpus SET exclusive_lease_id = :lease_id, reserved_mib = :mib, turn = turn + 1"
    " WHERE uuid = :uuid"
)
EVENT: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, node, epoch, data) VALUES ({now}, 'heal_gpu', :node, :epoch, :data)"
)


@dataclass(frozen=True, slots=True)
class Suspects:
    """What looked wrong without a lock; it is looked at again under one."""

    lease_ids: Sequence[int]  # over, and jobs are said to run under them
    gpus: Sequence[str]


def suspects(database: Database, connection: Connection, limit: int) -> Suspects:
    """Look for rows that disagree, without a lock: it takes a while, and others write meanwhile."""
    over = list(database.run(connection, ENDED_UNDER_JOBS, {"limit": limit}).scalars())
    return Suspects(over, [row["uuid"] for row, _ in _wrong(database, connection, None)])


def heal(database: Database, connection: Connection, found: Suspects, policy: LossPolicy, *, epoch: int) -> int:
    """Lose the jobs whose lease is over; set GPUs to what the active leases say; return how much was wrong."""
    over = found.lease_ids  # an ended lease never lives again
    lost = lose_jobs(database, connection, over, policy, FailureClass.LOST, epoch=epoch) if over else 0
    if not found.gpus:
        return lost
    # Whoever takes or frees a GPU holds its row until the lease is committed with it: looked at again under that lock,
    # what was only on its way is right.
    wrong = _wrong(database, connection, found.gpus)
    for row, (lease_id, mib) in wrong:
        stale = row["exclusive_lease_id"]
        if stale is not None and stale != lease_id:
            database.run(connection, statements.UNMARK_LEASE_GPUS, {"ids": [stale]})
        database.run(connection, SET_GPU, {"uuid": row["uuid"], "lease_id": lease_id, "mib": mib})
        data = dump({"gpu": row["uuid"], "was": [stale, row["reserved_mib"]], "is": [lease_id, mib]})
        database.run(connection, EVENT, {"node": row["node"], "epoch": epoch, "data": data})
    return lost + len(wrong)


def _wrong(
    database: Database, connection: Connection, uuids: Sequence[str] | None
) -> list[tuple[Row, tuple[int | None, int]]]:
    """Return the GPUs that say something else than the active leases, with what those say; locked if they are named."""
    if uuids is None:
        rows = database.run(connection, GPUS).mappings().all()
    else:
        rows = database.run(connection, GPUS_FOR_UPDATE, {"uuids": sorted(uuids)}).mappings().all()
    exclusive: dict[str, int] = {}
    reserved: dict[str, int] = {}
    for lease in database.run(connection, HELD).mappings():
        uuid = lease["gpu_uuid"]
        if lease["mode"] == LeaseMode.EXCLUSIVE.value:
            exclusive[uuid] = lease["id"]
        else:
            reserved[uuid] = reserved.get(uuid, 0) + (lease["memory_mib"] or 0)
    said = [(row, (exclusive.get(row["uuid"]), reserved.get(row["uuid"], 0))) for row in rows]
    return [(row, is_) for row, is_ in said if (row["exclusive_lease_id"], row["reserved_mib"]) != is_]
