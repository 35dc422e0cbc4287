"""The runners of worker pools, as workers and plans see them: who joins, does what, is to leave, has which model."""

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from orchestrator.domain.lease import PoolJoin, PoolMember, PoolUse, Renewal
from orchestrator.domain.pool import Leave
from orchestrator.scheduling.snapshot import ModelView
from orchestrator.storage import seats, statements
from orchestrator.storage.engine import Database, Step
from orchestrator.storage.rows import load
from orchestrator.storage.sql import Sql

JOIN: Final = Sql(
    "INSERT INTO worker_pool_runners (lease_id, pool, generation, model, ready_at, used_at, jobs_done,"
    " asleep) SELECT l.id, p.name, p.generation, p.model, {now}, {now}, 0, 0 FROM worker_pools p, orchestrator_leases l"
    " WHERE p.name = :pool AND p.generation = :generation AND p.leaving IS NULL AND l.id = :lease_id"
    " AND l.node = :node AND l.state = 'active'"
    " AND NOT EXISTS (SELECT 1 FROM worker_pool_runners r WHERE r.lease_id = :lease_id)"
)
FORGET_LOAD: Final = Sql("DELETE FROM worker_pool_loads WHERE job_id = :job_id")
NOTE_LOAD: Final = Sql("UPDATE worker_pools SET loaded_in_s = :seconds WHERE name = :pool")
MEMBERS: Final = Sql(
    "SELECT r.lease_id, r.pool, r.model, p.tenant, p.loaded_in_s FROM worker_pool_runners r"
    " JOIN worker_pools p ON p.name = r.pool WHERE r.lease_id IN :ids",
    "ids",
)
USE: Final = Sql(
    "UPDATE worker_pool_runners SET jobs_done = :jobs_done, run_s = COALESCE(:run_seconds, run_s),"
    " used_at = {now} WHERE lease_id = :lease_id"
)
LEAVING: Final = Sql(
    "SELECT lease_id, leaving FROM worker_pool_runners WHERE lease_id IN :ids AND leaving IS NOT NULL", "ids"
)
ASLEEP: Final = Sql(
    "SELECT r.lease_id FROM worker_pool_runners r JOIN worker_pools p ON p.name = r.pool"
    " WHERE r.lease_id IN :ids AND p.asleep = 1",
    "ids",
)
MODEL_NAMES: Final = Sql("SELECT name, model FROM worker_pools WHERE name IN :names", "names")
MODELS: Final = Sql(
    "SELECT r.pool, r.model, p.tenant, l.node, n.queues, COUNT(*) AS runners,"
    " SUM(CASE WHEN r.asleep = 1 OR p.asleep = 1 THEN 1 ELSE 0 END) AS asleep,"
    " SUM((SELECT COUNT(*) FROM orchestrator_attempts a WHERE a.lease_id = r.lease_id AND a.ended_at IS NULL))"
    " AS running,"
    " MAX(p.loaded_in_s) AS load_seconds, AVG(r.run_s) AS run_seconds, MAX(p.most) AS most"
    " FROM worker_pool_runners r JOIN orchestrator_leases l ON l.id = r.lease_id AND l.state = 'active'"
    " JOIN worker_pools p ON p.name = r.pool JOIN orchestrator_nodes n ON n.name = l.node"
    " WHERE r.leaving IS NULL AND n.state = 'up' AND n.drain = 0 AND n.heartbeat_at > {now_minus:bound}"
    " GROUP BY r.pool, r.model, p.tenant, l.node, n.queues ORDER BY l.node, r.pool, r.model"
)


def join_pools(
    database: Database, connection: Connection, node: str, joins: Iterable[PoolJoin]
) -> tuple[PoolMember, ...]:
    """Have leases of a host become those of pools; return which of them are now, in a repeat too."""
    joins = tuple(joins)
    for join in joins:
        values = {"lease_id": join.lease_id, "pool": join.pool, "generation": join.generation, "node": node}
        if database.run(connection, JOIN, values).rowcount:
            database.run(connection, NOTE_LOAD, {"pool": join.pool, "seconds": join.load_seconds})
            database.run(connection, FORGET_LOAD, {"job_id": join.job_id})
    rows = database.run(connection, MEMBERS, {"ids": [join.lease_id for join in joins]})
    return tuple(PoolMember(row.lease_id, row.pool, row.model, row.tenant, row.loaded_in_s) for row in rows)


def use_steps(uses: Sequence[PoolUse]) -> list[Step]:
    """Return what writes down what runners of pools have done."""
    return [
        (USE, {"lease_id": use.lease_id, "jobs_done": use.jobs_done, "run_seconds": use.run_seconds}) for use in uses
    ]


def renewal_of(database: Database, connection: Connection, lease_ids: Sequence[int], live: frozenset[int]) -> Renewal:
    """Return what is to be known of leases that were renewed, as far as they live."""
    ids = {"ids": list(lease_ids)}
    cancelling, leaving, asleep, unknown = database.run_together(
        connection,
        [
            (statements.CANCEL_REQUESTED, ids),
            (LEAVING, ids),
            (ASLEEP, ids),
            (seats.UNKNOWN, ids | {"bound": seats.DELIVERY_BOUND.total_seconds()}),
        ],
    )
    return Renewal(
        live=live,
        cancel_requested=tuple(row.seq for row in cancelling.rows),
        leaving=tuple((row.lease_id, Leave(row.leaving)) for row in leaving.rows),
        asleep=frozenset(row.lease_id for row in asleep.rows),
        open=tuple((row.job_seq, row.number, row.lease_id) for row in unknown.rows if row.lease_id in live),
    )


def model_names(database: Database, connection: Connection, names: Sequence[str]) -> dict[str, str]:
    """Return what the pools of these names have loaded, by name."""
    return {row.name: row.model for row in database.run(connection, MODEL_NAMES, {"names": names})}


def model_views(database: Database, connection: Connection, *, bound_seconds: float) -> tuple[ModelView, ...]:
    """Return the runners that have models loaded, of hosts that were heard of within ``bound_seconds``."""
    return tuple(
        ModelView(
            node=row.node,
            pool=row.pool,
            model=row.model,
            tenant=row.tenant,
            runners=row.runners - int(row.asleep),
            asleep=int(row.asleep),
            running=int(row.running),
            load_seconds=row.load_seconds,
            run_seconds=row.run_seconds,
            queues=frozenset(load(row.queues)),
            most=row.most,
        )
        for row in database.run(connection, MODELS, {"bound": bound_seconds})
    )
