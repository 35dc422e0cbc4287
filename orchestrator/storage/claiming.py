"""Granting claims: the stream chooses when a job is started, the database whether.

A claim under a lease that is held already, which is every claim of a busy runner and of a worker pool's, takes two
round trips beside the commit: one takes the jobs, the other starts what was taken.
"""

from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from itertools import chain
from typing import Any, Final

from sqlalchemy import Connection, CursorResult

from orchestrator import failpoints
from orchestrator.domain.job import JobKind, JobState, Resources
from orchestrator.domain.lease import Claim, ClaimedJob, ClaimOutcome, Refusal
from orchestrator.domain.wants import wants_text
from orchestrator.storage import statements
from orchestrator.storage.endings import end_leases
from orchestrator.storage.engine import Answer, Database, Step
from orchestrator.storage.granting import take_gpus
from orchestrator.storage.lost_answers import granted_before
from orchestrator.storage.pool_members import model_names
from orchestrator.storage.rows import instant, load, retry_on_from
from orchestrator.storage.seats import standing_jobs
from orchestrator.storage.sql import Sql


class Claiming:
    """The claims of one host, within one transaction."""

    def __init__(
        self, database: Database, connection: Connection, node: str, claims: Sequence[Claim], *, max_lost: int
    ) -> None:
        self._database, self._connection, self._node, self._claims = database, connection, node, claims
        self._max_lost = max_lost
        self._held = [claim.lease_id for claim in claims if claim.lease_id is not None]
        self._leases: dict[int, int | None] = {}  # claim key -> lease id; None: it has none
        self._taken: dict[int, list[int]] = {claim.key: [] for claim in claims}  # claim key -> job seqs

    def grant(self, *, ttl: timedelta, also: Sequence[Step]) -> tuple[ClaimOutcome, ...]:
        """Move the jobs that may start here to ``running``, each under its claim's lease; ``also`` is sent along."""
        if not self._claims:
            self._database.run_together(self._connection, also)
            return ()
        repeated = [claim for claim in self._claims if claim.repeated]
        before = granted_before(self._database, self._connection, self._node, repeated, ttl)
        self._lease(before, ttl)
        live = self._take()
        won = {seq: key for key, seqs in self._taken.items() for seq in seqs}
        won |= {seq: claim.key for claim in self._claims for seq in claim.job_seqs if seq in before}
        jobs = self._start(won, also)
        refusals = self._refuse(won)
        unused = self._release_unused({self._leases[key] for key in won.values()} | live)
        failpoints.reach("claim.in_transaction")
        return tuple(
            ClaimOutcome(
                key=claim.key,
                lease_id=None if self._leases[claim.key] in unused else self._leases[claim.key],
                granted=tuple(jobs[seq] for seq in claim.job_seqs if seq in jobs),
                refused=tuple((seq, refusals[seq]) for seq in claim.job_seqs if seq not in jobs),
            )
            for claim in self._claims
        )

    def _lease(self, before: Mapping[int, int], ttl: timedelta) -> None:
        """Give each claim the lease that it holds, or a new one if its GPUs are free."""
        if self._held and any(claim.grant is not None for claim in self._claims):
            self._run(statements.LIVE_LEASES, ids=self._held)  # locked before any GPU
        for claim in self._claims:
            lease_id = claim.lease_id
            found = {before[seq] for seq in claim.job_seqs if seq in before}
            if found:
                (lease_id,) = found
            elif claim.grant is not None:
                lease_id = take_gpus(self._database, self._connection, self._node, claim.grant, ttl)
            self._leases[claim.key] = lease_id

    def _take(self) -> Set[int | None]:
        """Take the jobs that still wait for this host, under leases that live; return those that were held before."""
        leased = [claim for claim in self._claims if self._leases[claim.key] is not None]
        takes = [self._step(statements.TAKE_READY, **self._ready(claim)) for claim in leased]
        held = [self._step(statements.LIVE_LEASES, ids=self._held)] if self._held else []
        answers = [[row[0] for row in answer.rows] for answer in self._together([*held, *takes])]
        live = frozenset(answers.pop(0)) if held else frozenset()
        self._taken |= {claim.key: seqs for claim, seqs in zip(leased, answers, strict=True)}
        dead = set(self._held) - live
        self._leases = {key: None if lease_id in dead else lease_id for key, lease_id in self._leases.items()}
        return live

    def _ready(self, claim: Claim) -> dict[str, Any]:
        resources = claim.resources
        values = {"seqs": list(claim.job_seqs), "lease_id": self._leases[claim.key], "gpus": resources.gpus}
        return values | {"mib": resources.gpu_memory_mib or 0, "wants": wants_text(resources.wants) or ""}

    def _start(self, won: Mapping[int, int], also: Sequence[Step]) -> dict[int, ClaimedJob]:
        """Open the attempts of the jobs taken; return what the runners of those won (seq -> claim key) need."""
        starts = [
            self._step(statements.START_JOBS, seqs=seqs, lease_id=self._leases[key])
            for key, seqs in self._taken.items()
            if seqs
        ]
        if starts:
            begun = list(chain.from_iterable(self._taken.values()))
            starts += [(statements.INSERT_ATTEMPTS, {"seqs": begun}), (statements.CLAIM_EVENTS, {"seqs": begun})]
        asks = [(statements.CLAIMED, {"seqs": list(won)})] if won else []
        answers = self._together([*also, *starts, *asks])
        if not won:
            return {}
        asked = {claim.key: claim.resources for claim in self._claims}
        models = self._models()
        return {row.seq: claimed_job(row, asked[won[row.seq]], models, self._max_lost) for row in answers[-1].rows}

    def _models(self) -> Mapping[str, str]:
        """Return what is meant by the models that are to be loaded: of a pool's name, what that pool loads."""
        cold = (claim for claim in self._claims if claim.grant is not None)
        wants = [claim.resources.wants for claim in cold if claim.resources.wants is not None]
        wanted = {one.model: one.model for one in wants if one.model is not None}
        return wanted | model_names(self._database, self._connection, sorted(wanted)) if wanted else wanted

    def _refuse(self, won: Mapping[int, int]) -> dict[int, Refusal]:
        """Return why each of the other jobs may not start here."""
        lost = [(seq, claim) for claim in self._claims for seq in claim.job_seqs if seq not in won]
        crowded = [seq for seq, claim in lost if claim.grant is not None and self._leases[claim.key] is None]
        others = [seq for seq, _ in lost if seq not in crowded]
        return why_refused(self._database, self._connection, others, self._node) | dict.fromkeys(
            crowded, Refusal.GPUS_TAKEN
        )

    def _release_unused(self, used: Set[int | None]) -> Sequence[int]:
        """End the leases under which nothing was won; return them."""
        unused = [lease_id for lease_id in self._leases.values() if lease_id is not None and lease_id not in used]
        if unused:
            end_leases(self._database, self._connection, unused, "released")
        return unused

    def _step(self, statement: Sql, **values: Any) -> Step:
        return statement, {"node": self._node, **values}

    def _run(self, statement: Sql, **values: Any) -> CursorResult[Any]:
        return self._database.run(self._connection, *self._step(statement, **values))

    def _together(self, steps: Sequence[Step]) -> list[Answer]:
        return self._database.run_together(self._connection, steps)


def confirm_seats(database: Database, node: str, claims: Sequence[Claim], *, max_lost: int) -> tuple[ClaimOutcome, ...]:
    """Answer claims of jobs that their submits have granted: may they still run under the leases that are named?"""
    rows = standing_jobs(database, node, claims) if claims else {}
    lost = [seq for claim in claims for seq in claim.job_seqs if seq not in rows]
    refusals = database.read(lambda connection: why_refused(database, connection, lost, None)) if lost else {}
    return tuple(
        ClaimOutcome(
            key=claim.key,
            lease_id=claim.lease_id,
            granted=tuple(
                claimed_job(rows[seq], claim.resources, {}, max_lost) for seq in claim.job_seqs if seq in rows
            ),
            refused=tuple((seq, refusals[seq]) for seq in claim.job_seqs if seq not in rows),
        )
        for claim in claims
    )


def why_refused(
    database: Database, connection: Connection, seqs: Sequence[int], node: str | None
) -> dict[int, Refusal]:
    """Return why jobs were not there to be taken; of the host of this name also that it drains."""
    refusals = dict.fromkeys(seqs, Refusal.UNKNOWN)
    for row in database.run(connection, statements.WHY_REFUSED, {"seqs": seqs, "node": node}) if seqs else ():
        state = JobState(row.state)
        refusals[row.seq] = _REFUSALS.get(state, Refusal.SUPERSEDED)
        if row.expired and refusals[row.seq] is Refusal.SUPERSEDED:
            refusals[row.seq] = Refusal.EXPIRED
        elif row.draining and state is JobState.QUEUED:
            refusals[row.seq] = Refusal.DRAINING
    return refusals


def claimed_job(row: Any, resources: Resources, models: Mapping[str, str], max_lost: int) -> ClaimedJob:
    """Return what running a job needs; ``models`` says what is meant by the names of models."""
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
        max_lost=max_lost,
        retry_on=retry_on_from(row.retry_on),
        checkpoint=row.checkpoint,
        traceparent=row.traceparent,
        ready_at=instant(row.ready_at) if row.traceparent is not None else None,
        model=None if wants is None or wants.model is None else models.get(wants.model, wants.model),
    )


_REFUSALS: Final = {
    JobState.RUNNING: Refusal.RUNNING,
    JobState.CANCELLED: Refusal.CANCELLED,
    JobState.SUCCEEDED: Refusal.ENDED,
    JobState.FAILED: Refusal.ENDED,
    JobState.DEAD_LETTER: Refusal.ENDED,
}
