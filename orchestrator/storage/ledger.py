"""What a worker commits about the jobs of its host: claims, finishes, releases, renewals."""

import itertools
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator import failpoints
from orchestrator.domain.entry import JobEntry
from orchestrator.domain.job import FailureClass, JobKind, JobState, Resources
from orchestrator.domain.lease import (
    Claim,
    ClaimedJob,
    ClaimOutcome,
    Finish,
    LedgerBatch,
    LedgerOutcome,
    Refusal,
    Renewal,
)
from orchestrator.domain.wants import wants_text
from orchestrator.ports import LossPolicy
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.storage import statements
from orchestrator.storage.admission import host_snapshot
from orchestrator.storage.endings import end_attempts, end_leases, heed_cancel, lose_jobs
from orchestrator.storage.engine import Database
from orchestrator.storage.granting import take_gpus
from orchestrator.storage.lost_answers import granted_before
from orchestrator.storage.placing import admit, withdraw
from orchestrator.storage.pool_members import join_pools, leaving, model_names, note_uses
from orchestrator.storage.rows import dump, instant, load, retry_on_from, storable


class SqlLedgerStore:
    """``LedgerStore`` over SQL."""

    def __init__(self, database: Database, *, max_lost: int = 3) -> None:
        self._database, self._max_lost = database, max_lost
        self._loss_policy = LossPolicy(max_lost, delay=timedelta(seconds=1), grace=timedelta(0))

    def commit(self, node: str, batch: LedgerBatch, *, ttl: timedelta) -> LedgerOutcome:
        """Apply the batch in one transaction; see the port."""
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
            granted = self._claim(connection, node, claims, ttl)
            if batch.uses:
                note_uses(self._database, connection, batch.uses)
            return LedgerOutcome(granted, stale, members)

        return self._database.transaction(apply)

    def renew(self, node: str, lease_ids: Sequence[int], *, ttl: timedelta) -> Renewal:
        """Extend the live ones among this node's leases."""
        ids = list(lease_ids)

        def extend(connection: Connection) -> Renewal:
            run = self._database.run
            extended = run(
                connection, statements.RENEW, {"ids": ids, "node": node, "ttl": ttl.total_seconds()}
            ).rowcount
            live = frozenset(ids)
            if extended != len(ids):
                live = self._live_leases(connection, node, ids)
            requested = run(connection, statements.CANCEL_REQUESTED, {"ids": ids}).scalars().all()
            return Renewal(live, tuple(requested), leaving(self._database, connection, ids))

        return self._database.transaction(extend)

    def host_snapshot(self, node: str, *, limit: int) -> Snapshot:
        """Return what a plan for this host alone needs."""
        return self._database.read(lambda connection: host_snapshot(self._database, connection, node, limit=limit))

    def admit(self, placements: Sequence[tuple[int, str]]) -> tuple[JobEntry, ...]:
        """Admit waiting jobs, given as (job seq, node)."""
        return self._database.transaction(lambda connection: admit(self._database, connection, placements))

    # Claims

    def _claim(
        self, connection: Connection, node: str, claims: Sequence[Claim], ttl: timedelta
    ) -> tuple[ClaimOutcome, ...]:
        if not claims:
            return ()
        held = [claim.lease_id for claim in claims if claim.lease_id is not None]
        live = self._live_leases(connection, node, held) if held else frozenset()
        repeated = [claim for claim in claims if claim.repeated]
        before = granted_before(self._database, connection, node, repeated, ttl)
        leases: dict[int, int | None] = {}  # claim key -> lease id
        refusals: dict[int, Refusal] = {}
        won: dict[int, int] = {}  # job seq -> claim key
        for claim in claims:
            lease_id = claim.lease_id if claim.lease_id in live else None
            found = {seq: before[seq] for seq in claim.job_seqs if seq in before}
            if found:
                (lease_id,) = set(found.values())
            elif claim.grant is not None:
                lease_id = take_gpus(self._database, connection, node, claim.grant, ttl)
                refusals |= dict.fromkeys(claim.job_seqs, Refusal.GPUS_TAKEN) if lease_id is None else {}
            leases[claim.key] = lease_id
            if lease_id is not None:
                taken = self._take(connection, node, claim, lease_id)
                won |= dict.fromkeys([*found, *taken], claim.key)
        jobs = self._started(connection, won, claims, known=before.keys())
        losers = [seq for claim in claims for seq in claim.job_seqs if seq not in won and seq not in refusals]
        refusals |= self._explain(connection, losers) if losers else {}
        unused = self._release_unused(connection, leases, {leases[key] for key in won.values()} | live)
        failpoints.reach("claim.in_transaction")
        return tuple(
            ClaimOutcome(
                key=claim.key,
                lease_id=None if leases[claim.key] in unused else leases[claim.key],
                granted=tuple(jobs[seq] for seq in claim.job_seqs if seq in jobs),
                refused=tuple((seq, refusals[seq]) for seq in claim.job_seqs if seq not in jobs),
            )
            for claim in claims
        )

    def _release_unused(
        self, connection: Connection, leases: Mapping[int, int | None], used: Set[int | None]
    ) -> Sequence[int]:
        """End the leases under which nothing was won; return them."""
        unused = [lease_id for lease_id in leases.values() if lease_id is not None and lease_id not in used]
        if unused:
            end_leases(self._database, connection, unused, "released")
        return unused

    def _take(self, connection: Connection, node: str, claim: Claim, lease_id: int) -> list[int]:
        """Move the claim's jobs that are still waiting for this node to ``running``; return their seqs."""
        run = self._database.run
        values = {"seqs": list(claim.job_seqs), "node": node, "gpus": claim.resources.gpus}
        values |= {"mib": claim.resources.gpu_memory_mib or 0, "wants": wants_text(claim.resources.wants) or ""}
        seqs = list(run(connection, statements.TAKE_READY, values).scalars())
        if seqs:
            run(connection, statements.START_JOBS, {"seqs": seqs, "lease_id": lease_id, "node": node})
        return seqs

    def _started(
        self, connection: Connection, won: Mapping[int, int], claims: Sequence[Claim], *, known: Set[int]
    ) -> dict[int, ClaimedJob]:
        """Open the attempts of the jobs won, given as seq -> claim key, and return what their runners need.

        The attempts of those in ``known`` are open already.
        """
        if not won:
            return {}
        asked = {claim.key: claim.resources for claim in claims}
        run, seqs = self._database.run, list(won)
        begun = [seq for seq in seqs if seq not in known]
        if begun:
            run(connection, statements.INSERT_ATTEMPTS, {"seqs": begun})
            run(connection, statements.CLAIM_EVENTS, {"seqs": begun})
        rows = run(connection, statements.CLAIMED, {"seqs": seqs}).all()
        models = self._models(connection, claims)
        return {row.seq: self._claimed_job(row, asked[won[row.seq]], models) for row in rows}

    def _models(self, connection: Connection, claims: Sequence[Claim]) -> Mapping[str, str]:
        """Return what is meant by the models that are to be loaded: of a pool's name, what that pool loads."""
        cold = (claim for claim in claims if claim.grant is not None)
        wants = [claim.resources.wants for claim in cold if claim.resources.wants is not None]
        wanted = {one.model: one.model for one in wants if one.model is not None}
        return wanted | model_names(self._database, connection, sorted(wanted)) if wanted else wanted

    def _claimed_job(self, row: Any, resources: Resources, models: Mapping[str, str]) -> ClaimedJob:
        wants = resources.wants
        return ClaimedJob(
            seq=row.seq,
            id=row.id,
            name=row.name,
            task=row.task,
            kind=JobKind(row.kind),
            queue=row.queue,
            tenant=row.tenant,
            attempt=row.attempt,
            payload=load(row.payload),
            resources=resources,
            digest=row.digest,
            time_limit_seconds=row.time_limit_s,
            soft_time_limit_seconds=row.soft_time_limit_s,
            grace_seconds=row.grace_s,
            max_attempts=row.max_attempts,
            lost_count=row.lost_count,
            forgiven=row.forgiven,
            max_lost=self._max_lost,
            retry_on=retry_on_from(row.retry_on),
            checkpoint=row.checkpoint,
            traceparent=row.traceparent,
            ready_at=instant(row.ready_at) if row.traceparent is not None else None,
            model=None if wants is None or wants.model is None else models.get(wants.model, wants.model),
        )

    def _explain(self, connection: Connection, seqs: list[int]) -> dict[int, Refusal]:
        refusals = dict.fromkeys(seqs, Refusal.UNKNOWN)
        for row in self._database.run(connection, statements.WHY_REFUSED, {"seqs": seqs}):
            refusals[row.seq] = _REFUSALS.get(JobState(row.state), Refusal.SUPERSEDED)
            if row.expired and refusals[row.seq] is Refusal.SUPERSEDED:
                refusals[row.seq] = Refusal.EXPIRED
        return refusals

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
        return tuple(f for f in refused if (f.job_seq, f.attempt, f.lease_id, f.event.value) not in before)


_REFUSALS: Final = {
    JobState.RUNNING: Refusal.RUNNING,
    JobState.CANCELLED: Refusal.CANCELLED,
    JobState.SUCCEEDED: Refusal.ENDED,
    JobState.FAILED: Refusal.ENDED,
    JobState.DEAD_LETTER: Refusal.ENDED,
}
