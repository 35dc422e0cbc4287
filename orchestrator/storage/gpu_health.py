"""What is remembered of GPUs: their health and why, their strikes, and what operators want of them."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.cluster import GpuAction, GpuHealth, GpuOrder, GpuStanding
from orchestrator.domain.policy import headroom_mib
from orchestrator.errors import UnknownGpu
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import Row, dump, storable
from orchestrator.storage.sql import Sql

_LENT: Final = (
    "FROM orchestrator_lease_holders h JOIN orchestrator_leases l ON l.id = h.lease_id AND l.state = 'active'"
    " JOIN orchestrator_lease_gpus c ON c.lease_id = l.id WHERE c.gpu_uuid = orchestrator_gpus.uuid"
)
_COLUMNS: Final = (
    "uuid, node, memory_mib, (SELECT max_gpu_fraction FROM orchestrator_policy) AS max_fraction,"  # noqa: S608 - above
    " health, strikes, health_reason, warning, held, releases, resets,"
    f" (SELECT COUNT(*) {_LENT} AND l.mode = 'exclusive') AS lent,"
    f" (SELECT COALESCE(SUM(l.memory_mib), 0) {_LENT} AND l.mode = 'shared') AS lent_mib,"
    f" (SELECT GROUP_CONCAT(l.id) {_LENT} AND h.ready_at IS NULL AND h.refusal IS NULL) AS unready"
)
OF_NODE: Final = Sql(f"SELECT {_COLUMNS} FROM orchestrator_gpus WHERE node = :node")  # noqa: S608 - above
ONE_FOR_UPDATE: Final = Sql(
    f"SELECT {_COLUMNS} FROM orchestrator_gpus WHERE uuid = :uuid {{for_update}}"  # noqa: S608 - above
)
NOTE: Final = Sql(
    "UPDATE orchestrator_gpus SET health = :health, strikes = :strikes, health_reason = :reason,"
    " warning = :warning"
    " WHERE uuid = :uuid AND node = :node"
)
ORDERS: Final[Mapping[GpuAction, Sql]] = {
    GpuAction.QUARANTINE: Sql(
        "UPDATE orchestrator_gpus SET held = 1, health = CASE WHEN health = 'lost' THEN health ELSE 'quarantined' END,"
        " health_reason = :reason WHERE uuid = :uuid"
    ),
    GpuAction.RELEASE: Sql(
        "UPDATE orchestrator_gpus SET held = 0, releases = releases + 1, health_reason = :reason WHERE uuid = :uuid"
    ),
    GpuAction.RESET: Sql(
        "UPDATE orchestrator_gpus SET held = 0, releases = releases + 1, resets = resets + 1, strikes = 0,"
        " health_reason = :reason WHERE uuid = :uuid"
    ),
}
GPU_EVENT: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, node, data) VALUES ({now}, :kind, :node, :data)",
)
#: Longest reason that is kept.
LONGEST_REASON: Final = 255


def standings(database: Database, connection: Connection, node: str) -> dict[str, GpuStanding]:
    """Return what is remembered of a host's GPUs."""
    rows = database.run(connection, OF_NODE, {"node": node}).mappings().all()
    return {row["uuid"]: _standing(row) for row in rows}


def is_known(known: Mapping[str, GpuStanding], told: Mapping[str, GpuStanding]) -> bool:
    """Tell whether there is nothing new to remember."""
    return all(uuid not in known or _essence(known[uuid]) == _essence(one) for uuid, one in told.items())


def note(
    database: Database, connection: Connection, node: str, told: Mapping[str, GpuStanding]
) -> Mapping[str, GpuOrder]:
    """Remember what changed, each change with an event; return what operators want of the host's GPUs."""
    known = standings(database, connection, node)
    for uuid, standing in sorted(told.items()):
        before = known.get(uuid)
        if before is None or _essence(before) == _essence(standing):
            continue
        held = before.order.held and standing.health is GpuHealth.HEALTHY  # it will hear of that in a moment
        health = GpuHealth.QUARANTINED if held else standing.health
        reason, warning = _reason(standing.reason), _reason(standing.warning)
        values = {"uuid": uuid, "node": node, "health": health.value, "strikes": standing.strikes, "reason": reason}
        database.run(connection, NOTE, values | {"warning": warning})
        if warning != before.warning:
            told_of = {"gpu": uuid, "warning": warning or before.warning}
            kind = "gpu_warned" if warning else "gpu_warning_over"
            database.run(connection, GPU_EVENT, {"kind": kind, "node": node, "data": dump(told_of)})
        if health is not before.health:
            data = dump({"gpu": uuid, "was": before.health.value, "reason": reason, "strikes": standing.strikes})
            database.run(connection, GPU_EVENT, {"kind": f"gpu_{health.value}", "node": node, "data": data})
    return {uuid: standing.order for uuid, standing in known.items()}


def order(database: Database, connection: Connection, uuid: str, action: GpuAction, *, by: str) -> None:
    """Record what an operator wants of a GPU.

    Raises:
        UnknownGpu: If no host ever told of it.
    """
    row = database.run(connection, ONE_FOR_UPDATE, {"uuid": uuid}).mappings().first()
    if row is None:
        raise UnknownGpu(uuid)
    words = {
        GpuAction.QUARANTINE: f"quarantined by {by}",
        GpuAction.RELEASE: f"released by {by}",
        GpuAction.RESET: f"reset by {by}",
    }[action]
    database.run(connection, ORDERS[action], {"uuid": uuid, "reason": _reason(words)})
    data = dump({"gpu": uuid, "by": by, "was": row["health"]})
    database.run(connection, GPU_EVENT, {"kind": f"gpu_{action.value}"[:16], "node": row["node"], "data": data})


def _standing(row: Row) -> GpuStanding:
    kept = headroom_mib(0, row["memory_mib"], row["max_fraction"])
    unready = tuple(sorted(map(int, str(row["unready"]).split(",")))) if row["unready"] is not None else ()
    lent = bool(row["lent"]), int(row["lent_mib"])
    order = GpuOrder(bool(row["held"]), row["releases"], row["resets"], *lent, unready, kept)
    return GpuStanding(GpuHealth(row["health"]), row["strikes"], row["health_reason"], order, row["warning"])


def _essence(standing: GpuStanding) -> tuple[Any, ...]:
    return standing.health, standing.strikes, _reason(standing.reason), _reason(standing.warning)


def _reason(text: str | None) -> str | None:
    clean = storable(text)
    return None if clean is None else clean[:LONGEST_REASON]
