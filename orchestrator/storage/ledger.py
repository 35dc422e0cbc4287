"""What a worker commits about the jobs of its host: claims, finishes, releases, renewals."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from orchestrator.domain.entry import JobEntry
from orchestrator.domain.job import FailureClass
from orchestrator.domain.lease import Finish, LedgerBatch, LedgerOutcome, Measured, Renewal
from orchestrator.metric_ports import Total
from orchestrator.ports import LossPolicy
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.storage import statements
from orchestrator.storage.admission import host_snapshot
from orchestrator.storage.claiming import Claiming, confirm_seats
from orchestrator.storage.endings import end_attempts, end_leases, heed_cancel, lose_jobs
from orchestrator.storage.engine import Database
from orchestrator.storage.placing import admit, withdraw
from orchestrator.storage.pool_members import join_pools, renewal_of, use_steps
from orchestrator.storage.pool_sleep import resize
from orchestrator.storage.rows import dump, storable
from orchestrator.storage.totals import raise_total
from orchestrator.storage.usage import note_measured

_NOTHING: Final = LedgerBatch()


class SqlLedgerStore:
    """``LedgerStore`` over SQL."""

    def __init__(self, database: Database, *, max_lost: int = 3) -> None:
        self._database, self._max_lost = database, max_lost
        self._loss_policy = LossPolicy(max_lost, delay=timedelta(seconds=1), grace=timedelta(0))

    def commit(self, node: str, batch: LedgerBatch, *, ttl: timedelta) -> LedgerOutcome:
        """Apply the batch in one transaction; see the port."""
        seated = [claim for claim in batch.claims if claim.seated]
        if not seated:
            return self._commit(node, batch, ttl)
        confirmed = confirm_seats(self._database, node, seated, max_lost=self._max_lost)
        rest = replace(batch, claims=tuple(claim for claim in batch.claims if not claim.seated))
        outcome = self._commit(node, rest, ttl) if rest != _NOTHING else LedgerOutcome()
        return replace(outcome, claims=(*confirmed, *outcome.claims))

    def _commit(self, node: str, batch: LedgerBatch, ttl: timedelta) -> LedgerOutcome:
        tries = itertools.count()

        def apply(connection: Connection) -> LedgerOutcome:
            again = next(tries) > 0  # the connection may have been lost after the commit
            claims = [replace(claim, repeated=True) for claim in batch.claims] if again else batch.claims
            self._write_output(connection, batch)
            stale = self._finish(connection, node, batch.finishes)
            if batch.releases:
                self._release(connection, node, batch.releases)
            if batch.withdrawals:
                withdraw(self._database, connection, batch.withdrawals, node=node)
            members = join_pools(self._database, connection, node, batch.joins) if batch.joins else ()
            resized = resize(self._database, connection, node, batch.resizes, ttl)
            claiming = Claiming(self._database, connection, node, claims, max_lost=self._max_lost)
            granted = claiming.grant(ttl=ttl, also=use_steps(batch.uses))
            return LedgerOutcome(granted, stale, members, resized)

        return self._database.transaction(apply)

    def renew(
        self, node: str, lease_ids: Sequence[int], *, ttl: timedelta, measured: Sequence[Measured] = ()
    ) -> Renewal:
        """Extend the live ones among this node's leases, and write what was measured under them."""
        ids = list(lease_ids)

        def extend(connection: Connection) -> Renewal:
            run = self._database.run
            extended = run(
                connection, statements.RENEW, {"ids": ids, "node": node, "ttl": ttl.total_seconds()}
            ).rowcount
            live = frozenset(ids)
            if extended != len(ids):
                live = self._live_leases(connection, node, ids)
            note_measured(self._database, connection, [one for one in measured if one.lease_id in live])
            return renewal_of(self._database, connection, ids, live)

        return self._database.transaction(extend)

    def host_snapshot(self, node: str, *, limit: int) -> Snapshot:
        """Return what a plan for this host alone needs."""
        return self._database.read(lambda connection: host_snapshot(self._database, connection, node, limit=limit))

    def admit(self, placements: Sequence[tuple[int, str]]) -> tuple[JobEntry, ...]:
        """Admit waiting jobs, given as (job seq, node)."""
        return self._database.transaction(lambda connection: admit(self._database, connection, placements))

    def _live_leases(self, connection: Connection, node: str, ids: list[int]) -> frozenset[int]:
        return frozenset(self._database.run(connection, statements.LIVE_LEASES, {"ids": ids, "node": node}).scalars())

    # Finishes

    def _write_output(self, connection: Connection, batch: LedgerBatch) -> None:
        run = self._database.run
        if batch.logs:
            rows = [
                {"seq": c.job_seq, "attempt": c.attempt, "lease_id": c.lease_id, "number": c.number}
                | {"data": storable(c.data)}
                for c in batch.logs
            ]
            run(connection, statements.INSERT_LOG, rows)
        if batch.progress:
            reports = [
                {"seq": p.job_seq, "attempt": p.attempt, "lease_id": p.lease_id}
                | {"progress": None if p.progress is None else dump(p.progress), "checkpoint": p.checkpoint}
                for p in batch.progress
            ]
            run(connection, statements.SET_PROGRESS, reports)
        for note in batch.notes:
            values = {"seq": note.job_seq, "attempt": note.attempt, "lease_id": note.lease_id}
            run(connection, statements.JOB_NOTE, values | {"kind": note.kind, "data": dump(note.data)})

    def _release(self, connection: Connection, node: str, lease_ids: Sequence[int]) -> None:
        """End leases of this node.

        A job that still runs under one was claimed in a commit whose answer was lost, and its worker never knew.
        """
        ended = end_leases(self._database, connection, lease_ids, "released", node=node)
        if ended:
            lose_jobs(self._database, connection, ended, self._loss_policy, FailureClass.LOST, none_ran=True)

    def _finish(self, connection: Connection, node: str, finishes: Sequence[Finish]) -> tuple[Finish, ...]:
        if not finishes:
            return ()
        live = self._live_leases(connection, node, sorted({finish.lease_id for finish in finishes}))
        seqs = sorted(finish.job_seq for finish in finishes)
        locked = self._database.run(connection, statements.RUNNING_FOR_UPDATE, {"seqs": seqs}).all()
        current = {(row.seq, row.attempt, row.lease_id): bool(row.cancelling) for row in locked}
        good: list[Finish] = []
        refused: list[Finish] = []
        for finish in finishes:
            cancelling = current.get((finish.job_seq, finish.attempt, finish.lease_id))
            if cancelling is None or finish.lease_id not in live:
                refused.append(finish)
            else:
                good.append(heed_cancel(finish) if cancelling else finish)
        end_attempts(self._database, connection, node, good)
        return self._stale(connection, node, refused) if refused else ()

    def _stale(self, connection: Connection, node: str, refused: Sequence[Finish]) -> tuple[Finish, ...]:
        """Return those that never took effect; the others are repeats of a commit whose answer was lost."""
        values = {"seqs": sorted(finish.job_seq for finish in refused), "node": node}
        rows = self._database.run(connection, statements.COMMITTED_BEFORE, values)
        before = {(row.job_seq, row.number, row.lease_id, row.outcome) for row in rows}
        stale = tuple(f for f in refused if (f.job_seq, f.attempt, f.lease_id, f.event.value) not in before)
        raise_total(self._database, connection, Total.WRITES_REFUSED, len(stale), label=node)
        return stale
