"""Admission and what the leader's sweeps read and write."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, select

from orchestrator.domain.cluster import GpuHealth, NodeState
from orchestrator.domain.entry import JobEntry
from orchestrator.domain.job import Resources
from orchestrator.domain.wants import wants_from
from orchestrator.ports import DueEntry, LossPolicy
from orchestrator.scheduling.snapshot import AdmittedView, Candidate, GpuView, HostView, Snapshot
from orchestrator.storage import canvases, healing, statements, sweeps, tables
from orchestrator.storage.engine import Database
from orchestrator.storage.placing import admit
from orchestrator.storage.pool_members import model_views
from orchestrator.storage.queue_views import queue_views
from orchestrator.storage.rows import FRACTION, entry_from, headroom_from, links_from, load

#: A host whose heartbeat is older than this many seconds is given nothing.
HEARTBEAT_BOUND: Final = 15.0
_BY_PLACE: Final = (tables.gpus.c.node, tables.gpus.c.gpu_index)


class SqlAdmissionStore:
    """``AdmissionStore`` over SQL."""

    def __init__(self, database: Database, *, recheck: timedelta = timedelta(seconds=8)) -> None:
        self._database, self._recheck = database, recheck

    def snapshot(self, *, limit: int) -> Snapshot:
        """Return what a plan for all hosts needs."""
        return self._database.read(lambda connection: _snapshot(self._database, connection, None, limit))

    def admit(self, placements: Sequence[tuple[int, str | None]], *, epoch: int) -> tuple[JobEntry, ...]:
        """Admit waiting jobs under the leader's epoch."""
        return sweeps.fenced(self._database, epoch, lambda c: admit(self._database, c, placements, epoch=epoch))

    def set_windows(self, windows: Mapping[str, int], *, epoch: int) -> None:
        """Set how many unclaimed jobs a submit may leave in each queue's stream."""
        rows = [{"name": name, "window": window} for name, window in sorted(windows.items())]
        if rows:
            sweeps.fenced(self._database, epoch, lambda c: self._database.run(c, sweeps.SET_WINDOW, rows))

    def due_entries(self, *, limit: int, epoch: int) -> Sequence[DueEntry]:
        """Return admitted jobs whose entry is to be published, or looked for, now."""

        def find(connection: Connection) -> Sequence[DueEntry]:
            seqs = list(self._database.run(connection, sweeps.DUE_ENTRIES, {"limit": limit}).scalars())
            rows = self._database.run(connection, statements.ENTRIES, {"seqs": seqs}).mappings().all() if seqs else []
            return [DueEntry(entry_from(row), row["entry_id"]) for row in rows]

        return self._database.read(find)

    def note_entries(self, published: Sequence[tuple[int, str]], *, epoch: int) -> None:
        """Record where entries are; look again after the recheck interval."""
        rows = [
            {"seq": seq, "entry_id": entry_id, "recheck": self._recheck.total_seconds()} for seq, entry_id in published
        ]
        if rows:
            sweeps.fenced(self._database, epoch, lambda c: self._database.run(c, sweeps.NOTE_ENTRY, rows))

    def make_entries_due(self, *, epoch: int) -> int:
        """Forget every known entry."""
        return sweeps.fenced(self._database, epoch, lambda c: self._database.run(c, sweeps.FORGET_ENTRIES).rowcount)

    def release_due(self, *, limit: int, epoch: int) -> int:
        """Move scheduled jobs whose time has come to pending; cancel waiting jobs past their deadline."""
        return sweeps.fenced(self._database, epoch, lambda c: sweeps.release_due(self._database, c, limit, epoch=epoch))

    def expired_leases(self, *, limit: int, grace: timedelta) -> Sequence[tuple[int, int]]:
        """Return (id, renewals) of active leases past their end and the grace."""
        values = {"limit": limit, "grace": grace.total_seconds()}
        rows = self._database.read(lambda c: self._database.run(c, sweeps.EXPIRED_LEASES, values).all())
        return [(row.id, row.renewals) for row in rows]

    def expire_leases(self, candidates: Sequence[tuple[int, int]], *, policy: LossPolicy, epoch: int) -> int:
        """End the leases that are still past their end with the same renewals; their jobs are lost."""
        if not candidates:
            return 0
        return sweeps.fenced(
            self._database, epoch, lambda c: sweeps.expire(self._database, c, candidates, policy, epoch=epoch)
        )

    def end_forgotten(self, *, limit: int, epoch: int) -> int:
        """End blocked jobs whose need ended otherwise than well without them being told."""
        return sweeps.fenced(
            self._database, epoch, lambda c: canvases.end_forgotten(self._database, c, limit, epoch=epoch)
        )

    def lose_nodes(self, *, silent_for: timedelta, epoch: int) -> Sequence[str]:
        """Mark silent hosts as lost and withdraw what was admitted for them."""
        return sweeps.fenced(
            self._database, epoch, lambda c: sweeps.lose_nodes(self._database, c, silent_for, epoch=epoch)
        )

    def heal(self, *, policy: LossPolicy, limit: int, epoch: int) -> int:
        """Bring rows back into line that disagree."""
        found = self._database.read(lambda c: healing.suspects(self._database, c, limit))
        if not (found.lease_ids or found.gpus):
            return 0
        return sweeps.fenced(
            self._database, epoch, lambda c: healing.heal(self._database, c, found, policy, epoch=epoch)
        )

    def prune(self, *, older_than: timedelta, limit: int, epoch: int) -> int:
        """Delete ended jobs, with all that belongs to them, and old events."""
        return sweeps.fenced(self._database, epoch, lambda c: sweeps.prune(self._database, c, older_than, limit))

    def prune_audit(self, *, older_than: timedelta, limit: int, epoch: int) -> int:
        """Delete old lines of the audit."""
        return sweeps.fenced(self._database, epoch, lambda c: sweeps.prune_audit(self._database, c, older_than, limit))


def host_snapshot(database: Database, connection: Connection, node: str, *, limit: int) -> Snapshot:
    """Return what a plan for one host needs."""
    return _snapshot(database, connection, node, limit)


def _snapshot(database: Database, connection: Connection, node: str | None, limit: int) -> Snapshot:
    hosts = _hosts(database, connection, node)
    names = sorted({queue for host in hosts for queue in host.queues}) if node else None
    queues, safe_mode = queue_views(database, connection, names)
    candidates = [
        row
        for queue in queues
        for row in database.run(connection, sweeps.CANDIDATES, {"queue": queue.name, "limit": limit})
    ]
    candidates.sort(key=lambda row: (row.rank, row.job_seq))
    admitted: Sequence[Any] = database.run(connection, sweeps.ADMITTED, {"node": node}).all() if candidates else ()
    waiting = tuple(_candidates(candidates))
    wants_model = any(one.resources.wants is not None and one.resources.wants.model is not None for one in waiting)
    return Snapshot(
        hosts=hosts,
        admitted=admitted_views(admitted),
        candidates=waiting,
        queues=queues,
        safe_mode=safe_mode,
        models=model_views(database, connection, bound_seconds=HEARTBEAT_BOUND) if wants_model else (),
    )


def admitted_views(rows: Iterable[Any]) -> tuple[AdmittedView, ...]:
    """Return jobs that are on their way, of rows of ``sweeps.ADMITTED``."""
    return tuple(
        AdmittedView(seq, queue, Resources(gpus, memory, wants_from(wants)), node, count)
        for seq, count, queue, gpus, memory, wants, node in rows
    )


def _candidates(rows: Iterable[Any]) -> Iterator[Candidate]:
    known: dict[tuple[int, int | None, str | None], Resources] = {}  # most jobs ask for the same
    for seq, queue, rank, tenant, gpus, memory, wants in rows:
        resources = known.get((gpus, memory, wants))
        if resources is None:
            resources = known[gpus, memory, wants] = Resources(gpus, memory, wants_from(wants))
        yield Candidate(seq, queue, tenant, 9 - rank, resources)


def _hosts(database: Database, connection: Connection, node: str | None) -> tuple[HostView, ...]:
    nodes = database.run(connection, sweeps.HOSTS, {"node": node, "bound": HEARTBEAT_BOUND}).all()
    cards = defaultdict(list)
    for row in connection.execute(select(tables.gpus, FRACTION).order_by(*_BY_PLACE)):
        if node is None or row.node == node:
            cards[row.node].append(
                GpuView(
                    uuid=row.uuid,
                    index=row.gpu_index,
                    model=row.model,
                    memory_mib=row.memory_mib,
                    reserved_mib=row.reserved_mib,
                    exclusive=row.exclusive_lease_id is not None,
                    healthy=row.health == GpuHealth.HEALTHY.value,
                    mig_profile=row.mig_profile,
                    foreign_mib=row.foreign_mib,
                    clean=bool(row.clean),
                    headroom_mib=headroom_from(row),
                    numa=row.numa,
                    links=links_from(row.links),
                )
            )
    return tuple(
        HostView(
            node=row.name,
            accepts=bool(row.live) and row.state == NodeState.UP.value,
            gpus=tuple(cards[row.name]),
            queues=frozenset(load(row.queues)),
            cpu_slots=row.cpu_slots,
            cpu_jobs=row.cpu_jobs,
            look_ahead=row.look_ahead,
            labels=tuple(sorted(load(row.labels).items())),
            cpus=row.cpus,
            cpus_taken=int(row.cpus_taken),
            memory_mib=row.memory_mib,
            memory_taken_mib=int(row.memory_taken_mib),
        )
        for row in nodes
    )
