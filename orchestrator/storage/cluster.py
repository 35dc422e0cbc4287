"""Hosts, GPUs and queues."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, case, insert, select, update

from orchestrator.domain.cluster import (
    DrainOutcome,
    Gpu,
    GpuAction,
    GpuHealth,
    GpuHolder,
    GpuOrder,
    GpuRecord,
    GpuSample,
    GpuStanding,
    NodeState,
)
from orchestrator.domain.gpu_memory import ForeignUse
from orchestrator.domain.job import FailureClass
from orchestrator.ports import LossPolicy, NodeRecord
from orchestrator.storage import gpu_health, gpu_holders, tables
from orchestrator.storage.admission import HEARTBEAT_BOUND
from orchestrator.storage.drains import set_drain
from orchestrator.storage.endings import end_leases, lose_jobs
from orchestrator.storage.engine import Database
from orchestrator.storage.lent_use import UNTOLD, LentUsePolicy, note_lent_use
from orchestrator.storage.rows import FRACTION, Row, dump, headroom_from, links_from, load, required_instant, storable
from orchestrator.storage.sql import Sql

NODES: Final = Sql(
    "SELECT n.*, n.heartbeat_at > {now_minus:bound} AND n.state <> 'lost' AS live,"
    " n.state <> 'lost' AND COALESCE(n.degraded_at > {now_minus:trouble}, 0) AS degraded FROM orchestrator_nodes n"
    " ORDER BY n.name"
)
REGISTER: Final = Sql(
    "INSERT INTO orchestrator_nodes (name, boot_id, worker, pid, state, drain, queues, tasks, cpu_slots, labels, cpus,"
    " memory_mib, look_ahead, registered_at, heartbeat_at)"
    " VALUES (:name, :boot_id, :worker, :pid, :state, :drain, :queues, :tasks, :cpu_slots, :labels, :cpus, :memory_mib,"
    " 0, {now}, {now})"
)
DELETE_NODE: Final = Sql("DELETE FROM orchestrator_nodes WHERE name = :name")
NODE_FOR_UPDATE: Final = Sql(
    "SELECT state, boot_id, pid, drain FROM orchestrator_nodes WHERE name = :name {for_update}"
)
#: Its state follows from what an operator wants and what it holds, so a host that was lost is what it was before.
HEARTBEAT: Final = Sql(
    "UPDATE orchestrator_nodes SET heartbeat_at = {now}, look_ahead = :look_ahead,"
    " degraded_at = CASE WHEN :degraded = 1 THEN {now_minus:ago} ELSE degraded_at END,"
    " state = CASE WHEN drain = 0 THEN 'up' WHEN :settled = 0 OR EXISTS (SELECT 1 FROM orchestrator_leases l"
    " WHERE l.node = orchestrator_nodes.name AND l.state = 'active') THEN 'draining' ELSE 'drained' END"
    " WHERE name = :name"
)
DEREGISTER: Final = Sql("UPDATE orchestrator_nodes SET state = 'lost' WHERE name = :name AND pid = :pid")
#: Those of its worker: who holds one without a job renews it, whatever becomes of the worker.
NODE_LEASES: Final = Sql(
    "SELECT id FROM orchestrator_leases l WHERE l.node = :name AND l.state = 'active'"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_lease_holders h WHERE h.lease_id = l.id)"
)
NODE_EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, node) VALUES ({now}, :kind, :name)")
SAMPLE: Final = Sql(
    "UPDATE orchestrator_gpus SET used_mib = :used_mib, utilization = :utilization,"
    " health = CASE WHEN held = 1 AND :health = 'healthy' THEN health ELSE :health END,"
    " gpu_index = :gpu_index, temperature = :temperature, power = :power, foreign_mib = :foreign_mib,"
    " foreign_by = :foreign_by, clean = :clean"
    " WHERE uuid = :uuid AND node = :node"
)
ENSURE_QUEUE: Final = Sql(
    "INSERT INTO orchestrator_queues (name, paused, `window`, version) VALUES (:name, 0, 16, 0)"
    " ON CONFLICT (name) DO NOTHING",
    mysql="INSERT INTO orchestrator_queues (name, paused, `window`, version) VALUES (:name, 0, 16, 0)"
    " ON DUPLICATE KEY UPDATE name = name",
)
#: A host is called degraded for so many seconds after its last trouble: longer than whoever watches looks away.
DEGRADED_BOUND: Final = 60.0
#: Most characters about who uses a GPU without a lease.
LONGEST_WORDS: Final = 512


class SqlClusterStore:
    """``ClusterStore`` over SQL."""

    def __init__(self, database: Database, *, max_lost: int = 3, lent_use: LentUsePolicy = UNTOLD) -> None:
        self._database, self._lent_use = database, lent_use
        # A host that registers again has lost what its earlier life ran; that runs again at once.
        self._restarted = LossPolicy(max_lost, delay=timedelta(0), grace=timedelta(0))

    def register_node(self, record: NodeRecord) -> Sequence[int]:
        """Insert or replace the host's row; give back what an earlier life of it still holds."""

        def register(connection: Connection) -> Sequence[int]:
            run = self._database.run
            row = run(connection, NODE_FOR_UPDATE, {"name": record.name}).first()
            same_life = row is not None and (row.boot_id, row.pid) == (record.boot_id, record.pid)
            given_back: list[int] = []
            if not same_life:
                held = list(run(connection, NODE_LEASES, {"name": record.name}).scalars())
                given_back = end_leases(self._database, connection, held, "released") if held else []
                if given_back:
                    lose_jobs(self._database, connection, given_back, self._restarted, FailureClass.LOST)
            drain = row.drain if row is not None else 0
            state = NodeState.DRAINING if drain else record.state
            run(connection, DELETE_NODE, {"name": record.name})
            run(connection, REGISTER, _node_row(record) | {"state": state.value, "drain": drain})
            self._sync_gpus(connection, record)
            run(connection, NODE_EVENT, {"kind": "node_up", "name": record.name})
            return given_back

        return self._database.transaction(register)

    def heartbeat(
        self,
        node: str,
        samples: Sequence[GpuSample],
        *,
        look_ahead: int,
        settled: bool = False,
        trouble_seconds: float | None = None,
    ) -> NodeState:
        """Refresh the host's row and its GPUs' readings; return what the host may do."""

        def beat(connection: Connection) -> NodeState:
            run = self._database.run
            values = {"name": node, "look_ahead": look_ahead, "settled": int(settled)}
            values |= {"degraded": int(trouble_seconds is not None), "ago": trouble_seconds or 0.0}
            run(connection, HEARTBEAT, values)
            if samples:
                run(connection, SAMPLE, [_sample_row(node, sample) for sample in samples])
                note_lent_use(self._database, connection, node, self._lent_use)
            row = run(connection, NODE_FOR_UPDATE, {"name": node}).first()
            return NodeState(row.state) if row is not None else NodeState.LOST

        return self._database.transaction(beat)

    def deregister_node(self, node: str, pid: int) -> None:
        """The host's worker ends in order: nothing is to be given to it any more."""
        self._database.transaction(lambda c: self._database.run(c, DEREGISTER, {"name": node, "pid": pid}).rowcount)

    def set_drain(self, node: str, *, drain: bool, by: str) -> DrainOutcome:
        """Have a host take nothing new, or take jobs again; what was placed on it and not started waits again."""
        return self._database.transaction(lambda c: set_drain(self._database, c, node, drain=drain, by=by))

    def nodes(self) -> Sequence[NodeRecord]:
        """Return every host that ever registered, with its GPUs."""

        def find(connection: Connection) -> Sequence[NodeRecord]:
            cards = defaultdict(list)
            for row in connection.execute(select(tables.gpus, FRACTION).order_by(tables.gpus.c.gpu_index)):
                cards[row.node].append(_gpu_record(row._mapping, headroom_from(row)))
            rows = (
                self._database.run(connection, NODES, {"bound": HEARTBEAT_BOUND, "trouble": DEGRADED_BOUND})
                .mappings()
                .all()
            )
            return [_node_record(row, tuple(cards[row["name"]])) for row in rows]

        return self._database.read(find)

    def gpu_holders(self) -> Mapping[str, Sequence[GpuHolder]]:
        """Return who has GPUs now, by uuid."""
        return self._database.read(lambda connection: gpu_holders.holders(self._database, connection))

    def gpu_standings(self, node: str) -> Mapping[str, GpuStanding]:
        """Return what is remembered of a host's GPUs."""
        return self._database.read(lambda c: gpu_health.standings(self._database, c, node))

    def note_gpu_standings(self, node: str, standings: Mapping[str, GpuStanding]) -> Mapping[str, GpuOrder]:
        """Remember what changed; return what operators want of the host's GPUs."""
        known = self.gpu_standings(node)
        if gpu_health.is_known(known, standings):  # as nearly always: a heartbeat takes no lock for it
            return {uuid: standing.order for uuid, standing in known.items()}
        return self._database.transaction(lambda c: gpu_health.note(self._database, c, node, standings))

    def order_gpu(self, uuid: str, action: GpuAction, *, by: str) -> None:
        """Record what an operator wants of a GPU."""
        self._database.transaction(lambda c: gpu_health.order(self._database, c, uuid, action, by=by))

    def ensure_queues(self, names: Sequence[str]) -> None:
        """Create the queues that do not exist."""
        rows = [{"name": name} for name in sorted(set(names))]
        if rows and set(names) - self.queues().keys():
            self._database.transaction(lambda c: self._database.run(c, ENSURE_QUEUE, rows).rowcount)

    def queues(self) -> Mapping[str, bool]:
        """Return every queue and whether it is paused."""
        query = select(tables.queues.c.name, tables.queues.c.paused).order_by(tables.queues.c.name)
        return {name: bool(paused) for name, paused in self._database.read(lambda c: c.execute(query).all())}

    def _sync_gpus(self, connection: Connection, record: NodeRecord) -> None:
        columns = tables.gpus.c
        known = set(connection.execute(select(columns.uuid).where(columns.node == record.name)).scalars())
        present = {card.gpu.uuid for card in record.gpus}
        elsewhere = (
            set(connection.execute(select(columns.uuid).where(columns.uuid.in_(sorted(present)))).scalars()) - known
        )
        for card in record.gpus:
            values = _gpu_row(card, record.name)
            if card.gpu.uuid in known or card.gpu.uuid in elsewhere:
                # It may have shrunk, by a change of its driver: what is reserved of it stays, and is no error.
                size = case(
                    (columns.reserved_mib > card.gpu.memory_mib, columns.reserved_mib), else_=card.gpu.memory_mib
                )
                resized = values | {"memory_mib": size}
                connection.execute(update(tables.gpus).where(columns.uuid == card.gpu.uuid).values(resized))
            else:
                connection.execute(insert(tables.gpus).values(values | {"reserved_mib": 0}))
        gone = known - present
        if gone:
            lost = update(tables.gpus).where(columns.uuid.in_(sorted(gone))).values(health=GpuHealth.LOST.value)
            connection.execute(lost)


def _node_row(record: NodeRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "boot_id": record.boot_id,
        "worker": record.worker,
        "pid": record.pid,
        "queues": dump(record.queues),
        "tasks": dump(record.tasks),
        "cpu_slots": record.cpu_slots,
        "labels": dump(dict(record.labels)),
        "cpus": record.cpus,
        "memory_mib": record.memory_mib,
    }


def _gpu_row(card: GpuRecord, node: str) -> dict[str, Any]:
    return {
        "uuid": card.gpu.uuid,
        "node": node,
        "gpu_index": card.gpu.index,
        "model": card.gpu.model,
        "memory_mib": card.gpu.memory_mib,
        "driver_version": card.gpu.driver_version,
        "mig_profile": card.gpu.mig_profile,
        "parent_uuid": card.gpu.parent_uuid,
        "numa": card.gpu.numa,
        "links": dump(card.gpu.links) if card.gpu.links else None,
        "health": card.health.value,
        "used_mib": card.used_mib,
        "utilization": card.utilization_percent,
        "temperature": card.temperature_celsius,
        "power": card.power_watts,
        "headroom_mib": card.headroom_mib,
        **_foreign_columns(card.foreign),
    }


def _foreign_columns(foreign: ForeignUse) -> dict[str, Any]:
    by = storable("; ".join(foreign.by)[:LONGEST_WORDS]) or None
    return {"foreign_mib": foreign.used_mib, "foreign_by": by, "clean": int(foreign.clean)}


def _sample_row(node: str, sample: GpuSample) -> dict[str, Any]:
    return {
        "uuid": sample.gpu.uuid,
        "node": node,
        "gpu_index": sample.gpu.index,
        "used_mib": sample.used_mib,
        "utilization": sample.utilization_percent,
        "temperature": sample.temperature_celsius,
        "power": sample.power_watts,
        "health": sample.health.value,
        **_foreign_columns(sample.foreign),
    }


def _gpu_record(row: Row, headroom_mib: int) -> GpuRecord:
    return GpuRecord(
        gpu=Gpu(
            uuid=row["uuid"],
            index=row["gpu_index"],
            model=row["model"],
            memory_mib=row["memory_mib"],
            driver_version=row["driver_version"],
            mig_profile=row["mig_profile"],
            parent_uuid=row["parent_uuid"],
            numa=row["numa"],
            links=links_from(row["links"]),
        ),
        node=row["node"],
        health=GpuHealth(row["health"]),
        used_mib=row["used_mib"],
        reserved_mib=row["reserved_mib"],
        exclusive_lease_id=row["exclusive_lease_id"],
        utilization_percent=row["utilization"],
        temperature_celsius=row["temperature"],
        power_watts=row["power"],
        health_reason=row["health_reason"],
        strikes=row["strikes"],
        foreign=ForeignUse(
            row["foreign_mib"], tuple(row["foreign_by"].split("; ")) if row["foreign_by"] else (), bool(row["clean"])
        ),
        headroom_mib=headroom_mib,
        warning=row["warning"],
    )


def _node_record(row: Row, gpus: tuple[GpuRecord, ...]) -> NodeRecord:
    return NodeRecord(
        name=row["name"],
        boot_id=row["boot_id"],
        worker=row["worker"],
        pid=row["pid"],
        state=NodeState(row["state"]),
        queues=tuple(load(row["queues"])),
        cpu_slots=row["cpu_slots"],
        look_ahead=row["look_ahead"],
        heartbeat_at=required_instant(row["heartbeat_at"]),
        live=bool(row["live"]),
        degraded=bool(row["degraded"]),
        gpus=gpus,
        tasks=tuple(load(row["tasks"])),
        drain=bool(row["drain"]),
        labels=load(row["labels"]),
        cpus=row["cpus"],
        memory_mib=row["memory_mib"],
    )
