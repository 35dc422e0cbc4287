"""Worker pools: what is stored of them, and how runners join and leave."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.job import JobState, Resources
from orchestrator.domain.pool import (
    Leave,
    Pool,
    PoolChange,
    PoolLoad,
    PoolRunner,
    PoolSpec,
    PoolStanding,
    PoolState,
    changed,
    restarted,
)
from orchestrator.domain.wants import wants_from, wants_text
from orchestrator.errors import Conflict, StaleVersion
from orchestrator.metric_ports import Total
from orchestrator.pool_errors import PoolExists, UnknownPool
from orchestrator.scheduling.pools import Decision
from orchestrator.storage import sweeps
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump, instant, load, required_instant, storable, stored_instant
from orchestrator.storage.sql import Sql
from orchestrator.storage.totals import raise_total

NOW: Final = Sql("SELECT {now} AS now")
POOLS: Final = Sql(
    "SELECT * FROM worker_pools WHERE (:name IS NULL OR name = :name)"
    " AND (:tenant IS NULL OR tenant IS NULL OR tenant = :tenant) ORDER BY name"
)
POOL_FOR_UPDATE: Final = Sql("SELECT * FROM worker_pools WHERE name = :name {for_update}")
_SPEC: Final = (
    "model", "task", "arguments", "gpus", "gpu_memory_mib", "wants", "least", "most", "idle_s", "load_limit_s",
    "pinned", "tenant", "priority",
)  # fmt: skip
_STANDING: Final = ("generation", "wanted", "leaving", "asleep", "state", "reason", "failures", "retry_at", "raised_at")
INSERT: Final = Sql(
    f"INSERT INTO worker_pools (name, {', '.join((*_SPEC, *_STANDING))}, changed_by, created_at, version)"  # noqa: S608 - above
    f" VALUES (:name, {', '.join(f':{name}' for name in (*_SPEC, *_STANDING))}, :by, :created_at, 1)"
)
UPDATE: Final = Sql(
    f"UPDATE worker_pools SET {', '.join(f'{name} = :{name}' for name in (*_SPEC, *_STANDING))},"  # noqa: S608 - above
    " changed_by = :by, version = version + 1 WHERE name = :name"
)
DELETE: Final = Sql("DELETE FROM worker_pools WHERE name = :name")
RUNNERS: Final = Sql(
    "SELECT r.*, (SELECT COUNT(*) FROM orchestrator_attempts a WHERE a.lease_id = r.lease_id AND a.ended_at IS NULL)"
    " AS running, l.node, l.memory_mib,"
    " CASE WHEN l.state = 'active' THEN NULL ELSE COALESCE(l.ended_at, {now}) END AS ended_at"
    " FROM worker_pool_runners r JOIN orchestrator_leases l ON l.id = r.lease_id WHERE r.pool IN :pools"
    " ORDER BY r.lease_id",
    "pools",
)
GPUS: Final = Sql(
    "SELECT lease_id, gpu_uuid FROM orchestrator_lease_gpus WHERE lease_id IN :ids ORDER BY gpu_uuid", "ids"
)
LOADS: Final = Sql(
    "SELECT w.pool, w.job_id, w.generation, w.created_at, j.state, j.reason, j.finished_at FROM worker_pool_loads w"
    " LEFT JOIN orchestrator_jobs j ON j.id = w.job_id WHERE w.pool IN :pools ORDER BY w.job_id",
    "pools",
)
INSERT_LOAD: Final = Sql(
    "INSERT INTO worker_pool_loads (job_id, pool, generation, created_at) VALUES (:job_id, :pool, :generation, {now})"
)
#: Guarded by the version: a person's change comes first, and the next pass decides anew.
APPLY: Final = Sql(
    "UPDATE worker_pools SET wanted = :wanted, asleep = :asleep, state = :state, reason = :reason,"
    " failures = :failures, retry_at = :retry_at, raised_at = :raised_at WHERE name = :name AND version = :version"
)
ASK_TO_LEAVE: Final = Sql("UPDATE worker_pool_runners SET leaving = :leaving WHERE lease_id = :lease_id")
FORGET_LOADS: Final = Sql("DELETE FROM worker_pool_loads WHERE job_id IN :ids", "ids")
FORGET_RUNNERS: Final = Sql("DELETE FROM worker_pool_runners WHERE lease_id IN :ids", "ids")
EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, epoch, data) VALUES ({now}, :kind, :epoch, :data)")


class SqlPoolStore:
    """``PoolStore`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, name: str, spec: PoolSpec, *, by: str) -> bool:
        """Create a pool or start one again; see the port."""

        def start(connection: Connection) -> bool:
            now, before = self._now(connection), self._locked(connection, name)
            if before is None:
                pool = _fresh(name, spec, now=now, by=by)
                values = _values(pool) | {"by": by, "created_at": stored_instant(now)}
                self._database.run(connection, INSERT, values)
            elif before.leave is not None:
                self._store(connection, restarted(before, spec, now=now), by)
            elif (differs := _differences(before.spec, spec)) != "":
                raise PoolExists(name, differs)
            elif not before.failures:
                return False
            else:
                self._store(connection, changed(before, PoolChange(), now=now), by)
            self._note(connection, "pool_start", pool=name, by=by, model=spec.model)
            return before is None

        return self._database.transaction(start)

    def change(self, name: str, change: PoolChange, *, by: str, version: int | None = None) -> Pool:
        """Change a pool; see the port."""

        def apply(connection: Connection) -> Pool:
            now, before = self._now(connection), self._locked(connection, name)
            if before is None:
                raise UnknownPool(name, self._names(connection))
            if version is not None and version != before.version:
                raise StaleVersion(version, before.version)
            if before.leave is not None and change.leave is None:
                raise Conflict(f"pool {name!r} is {before.state.value}; start it first")
            if before.state is PoolState.STOPPED:
                return before
            pool = changed(before, change, now=now)
            if pool == before:
                return before
            said = {word: value for word, value in _said(change).items() if value is not None}
            self._note(connection, "pool_set", pool=name, by=by, **said)
            return self._store(connection, pool, by)

        return self._database.transaction(apply)

    def remove(self, name: str, *, by: str) -> None:
        """Forget a pool that has stopped; see the port."""

        def remove(connection: Connection) -> None:
            pool = self._locked(connection, name)
            if pool is None:
                raise UnknownPool(name, self._names(connection))
            if pool.state is not PoolState.STOPPED:
                raise Conflict(f"pool {name!r} is {pool.state.value}; stop it first")
            self._database.run(connection, DELETE, {"name": name})
            self._note(connection, "pool_remove", pool=name, by=by)

        self._database.transaction(remove)

    def standing(self, name: str) -> PoolStanding:
        """Return one pool with its runners and loads."""
        found = self._database.read(lambda c: self._standings(c, {"name": name, "tenant": None}))
        if not found:
            raise UnknownPool(name, self._database.read(self._names))
        return found[0]

    def standings(self, *, tenant: str | None = None) -> tuple[datetime, Sequence[PoolStanding]]:
        """Return the clock and the pools."""
        values = {"name": None, "tenant": tenant}
        return self._database.read(lambda c: (self._now(c), self._standings(c, values)))

    def new_loads(self, pool: Pool, job_ids: Sequence[str], *, epoch: int) -> None:
        """Remember loads that are about to be submitted."""
        rows = [{"job_id": job_id, "pool": pool.name, "generation": pool.generation} for job_id in job_ids]
        if rows:
            sweeps.fenced(self._database, epoch, lambda c: self._database.run(c, INSERT_LOAD, rows))

    def apply(self, decision: Decision, *, epoch: int) -> bool:
        """Store what was decided for a pool."""
        return sweeps.fenced(self._database, epoch, lambda c: self._apply(c, decision, epoch))

    def _apply(self, connection: Connection, decision: Decision, epoch: int) -> bool:
        run, pool = self._database.run, decision.pool
        before = self._locked(connection, pool.name)
        if before is None or not run(connection, APPLY, _values(pool) | {"version": pool.version}).rowcount:
            return False
        if decision.leave:
            rows = [{"lease_id": lease_id, "leaving": leave.value} for lease_id, leave in decision.leave]
            run(connection, ASK_TO_LEAVE, rows)
            if pool.leave is None:  # nobody has ordered it
                raise_total(self._database, connection, Total.POOL_EVICTIONS, len(rows), label=pool.name)
        if decision.forget_loads:
            run(connection, FORGET_LOADS, {"ids": list(decision.forget_loads)})
        if decision.forget_runners:
            run(connection, FORGET_RUNNERS, {"ids": list(decision.forget_runners)})
        if before.state is not pool.state:
            data = {"pool": pool.name, "state": pool.state.value, "was": before.state.value, "reason": pool.reason}
            run(connection, EVENT, {"kind": "pool_state", "epoch": epoch, "data": dump(data)})
        return True

    def _standings(self, connection: Connection, values: dict[str, Any]) -> list[PoolStanding]:
        run = self._database.run
        found = [_pool(row) for row in run(connection, POOLS, values).mappings()]
        names = [pool.name for pool in found]
        if not names:
            return []
        rows = run(connection, RUNNERS, {"pools": names}).all()
        cards: defaultdict[int, list[str]] = defaultdict(list)
        for card in run(connection, GPUS, {"ids": [row.lease_id for row in rows]}) if rows else ():
            cards[card.lease_id].append(card.gpu_uuid)
        runners: defaultdict[str, list[PoolRunner]] = defaultdict(list)
        for row in rows:
            runners[row.pool].append(_runner(row, tuple(cards[row.lease_id])))
        loads: defaultdict[str, list[PoolLoad]] = defaultdict(list)
        for row in run(connection, LOADS, {"pools": names}):
            loads[row.pool].append(_load(row))
        return [PoolStanding(pool, tuple(runners[pool.name]), tuple(loads[pool.name])) for pool in found]

    def _locked(self, connection: Connection, name: str) -> Pool | None:
        row = self._database.run(connection, POOL_FOR_UPDATE, {"name": name}).mappings().first()
        return None if row is None else _pool(row)

    def _store(self, connection: Connection, pool: Pool, by: str) -> Pool:
        self._database.run(connection, UPDATE, _values(pool) | {"by": by})
        return replace(pool, version=pool.version + 1, changed_by=by)

    def _names(self, connection: Connection) -> list[str]:
        rows = self._database.run(connection, POOLS, {"name": None, "tenant": None})
        return [row.name for row in rows]

    def _now(self, connection: Connection) -> datetime:
        return required_instant(self._database.run(connection, NOW, {}).scalar_one())

    def _note(self, connection: Connection, kind: str, **data: Any) -> None:
        self._database.run(connection, EVENT, {"kind": kind, "epoch": None, "data": dump(data)})


def _fresh(name: str, spec: PoolSpec, *, now: datetime, by: str) -> Pool:
    return Pool(
        name=name,
        spec=spec,
        generation=1,
        wanted=spec.least,
        leave=None,
        asleep=False,
        state=PoolState.STARTING,
        reason=None,
        failures=0,
        retry_at=None,
        raised_at=now,
        loaded_in_seconds=None,
        changed_by=by,
        created_at=now,
        version=1,
    )


def _differences(before: PoolSpec, wanted: PoolSpec) -> str:
    names = ("model", "task", "arguments", "resources", "least", "most", "tenant")
    words = {"least": "min", "most": "max", "resources": "what each runner takes"}
    return ", ".join(words.get(name, name) for name in names if getattr(before, name) != getattr(wanted, name))


def _said(change: PoolChange) -> dict[str, Any]:
    return {
        "min": change.least,
        "max": change.most,
        "wanted": change.wanted,
        "pinned": change.pinned,
        "idle_seconds": change.idle_seconds,
        "leave": change.leave.value if change.leave else None,
        "asleep": change.asleep,
        "model": change.model,
    }


def _values(pool: Pool) -> dict[str, Any]:
    spec = pool.spec
    return {
        "name": pool.name,
        "model": spec.model,
        "task": spec.task,
        "arguments": dump(spec.arguments),
        "gpus": spec.resources.gpus,
        "gpu_memory_mib": spec.resources.gpu_memory_mib,
        "wants": wants_text(spec.resources.wants),
        "least": spec.least,
        "most": spec.most,
        "idle_s": spec.idle_seconds,
        "load_limit_s": spec.load_limit_seconds,
        "pinned": int(spec.pinned),
        "tenant": spec.tenant,
        "priority": spec.priority,
        "generation": pool.generation,
        "wanted": pool.wanted,
        "leaving": pool.leave.value if pool.leave else None,
        "asleep": int(pool.asleep),
        "state": pool.state.value,
        "reason": storable(pool.reason),
        "failures": pool.failures,
        "retry_at": stored_instant(pool.retry_at),
        "raised_at": stored_instant(pool.raised_at),
    }


def _pool(row: Any) -> Pool:
    spec = PoolSpec(
        model=row["model"],
        task=row["task"],
        arguments=load(row["arguments"]),
        resources=Resources(row["gpus"], row["gpu_memory_mib"], wants_from(row["wants"])),
        least=row["least"],
        most=row["most"],
        idle_seconds=row["idle_s"],
        load_limit_seconds=row["load_limit_s"],
        pinned=bool(row["pinned"]),
        tenant=row["tenant"],
        priority=row["priority"],
    )
    return Pool(
        name=row["name"],
        spec=spec,
        generation=row["generation"],
        wanted=row["wanted"],
        leave=Leave(row["leaving"]) if row["leaving"] else None,
        asleep=bool(row["asleep"]),
        state=PoolState(row["state"]),
        reason=row["reason"],
        failures=row["failures"],
        retry_at=instant(row["retry_at"]),
        raised_at=required_instant(row["raised_at"]),
        loaded_in_seconds=row["loaded_in_s"],
        changed_by=row["changed_by"],
        created_at=required_instant(row["created_at"]),
        version=row["version"],
    )


def _runner(row: Any, gpus: tuple[str, ...]) -> PoolRunner:
    return PoolRunner(
        lease_id=row.lease_id,
        generation=row.generation,
        model=row.model,
        node=row.node,
        ready_at=required_instant(row.ready_at),
        used_at=required_instant(row.used_at),
        running=row.running,
        jobs_done=row.jobs_done,
        run_seconds=row.run_s,
        leave=Leave(row.leaving) if row.leaving else None,
        asleep=bool(row.asleep),
        ended_at=instant(row.ended_at),
        gpus=gpus,
        memory_mib=row.memory_mib,
    )


def _load(row: Any) -> PoolLoad:
    return PoolLoad(
        job_id=row.job_id,
        generation=row.generation,
        created_at=required_instant(row.created_at),
        state=JobState(row.state) if row.state is not None else None,
        reason=row.reason,
        finished_at=instant(row.finished_at),
    )
