"""What the scripts of seeded bugs play on: real stores, a scripted clock, and ways to plant a bug."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.job import JobEvent, NewJob, Resources
from orchestrator.domain.lease import Claim, ClaimedJob, Finish, LeaseGrant, LedgerOutcome
from orchestrator.ports import LossPolicy
from orchestrator.storage.history import SqlHistory
from orchestrator.storage.sql import Sql
from orchestrator.testing.history import Expectations, Report, verify
from tests.contract.conftest import TTL, Stores, new_job
from tests.support.scripted_clock import ScriptedClock

POLICY = LossPolicy(max_lost=3, delay=timedelta(seconds=1), grace=timedelta(seconds=5))
DEAD = TTL + timedelta(seconds=10)  # after so long without a renewal a lease may be expired


@dataclass
class World:
    """Two hosts, a and b, with two GPUs each, and a leader; ``expected`` is what the script knows at its end."""

    stores: Stores
    clock: ScriptedClock
    directory: Path
    redis_url: str = ""  # of a server for the scripts that need one
    epoch: int = 0
    expected: Expectations = field(default_factory=Expectations)

    def __post_init__(self) -> None:
        for node in ("a", "b"):
            self.stores.register(node, 2)
        self.epoch = self.stores.lead()

    def new_job(self, **fields: Any) -> NewJob:
        """Return a job for one GPU."""
        return new_job(**fields)

    def start(self, *gpus: str, **fields: Any) -> ClaimedJob:
        """Submit a job and have its GPUs' host claim it."""
        submitted = self.stores.submit(resources=Resources(len(gpus)), **fields)
        return self.claim(submitted.seq, *gpus)

    def claim(self, seq: int, *gpus: str) -> ClaimedJob:
        """Have the GPUs' host claim a queued job."""
        return self.stores.claim(seq, *gpus, node=gpus[0][0]).granted[0]

    def lease_of(self, job: ClaimedJob) -> int:
        """Return the lease under which an attempt was claimed."""
        rows = self.stores.jobs.attempts(job.id)
        return next(row.lease_id for row in rows if row.number == job.attempt)

    def finish(self, job: ClaimedJob, event: JobEvent, *, lease: int | None = None, node: str = "a") -> LedgerOutcome:
        """Commit the end of an attempt, under its own lease unless another is given."""
        ended = Finish(job.seq, job.attempt, lease or self.lease_of(job), event)
        return self.stores.commit(node, finishes=(ended,))

    def expire(self, *leases: int) -> int:
        """Let so much time pass that these may be expired, and expire them as a leader does."""
        self.clock.advance(DEAD)
        self.epoch = self.stores.lead()
        renewals = dict(self.stores.admission.expired_leases(limit=99, grace=timedelta(0)))
        candidates = [(lease, renewals.get(lease, 0)) for lease in leases]
        return self.stores.admission.expire_leases(candidates, policy=POLICY, epoch=self.epoch)

    def run_again(self, job: ClaimedJob, *gpus: str) -> ClaimedJob:
        """Release a job that waits for its next attempt, admit it and have it claimed."""
        self.clock.advance(timedelta(seconds=2))
        self.epoch = self.stores.lead()
        self.stores.admission.release_due(limit=99, epoch=self.epoch)
        self.stores.admission.admit([(job.seq, None)], epoch=self.epoch)
        return self.claim(job.seq, *gpus)

    def lost_and_running_again(self) -> tuple[ClaimedJob, ClaimedJob]:
        """Return the attempt of a holder that was taken for dead on host a, and the next one, on host b."""
        first = self.start("a-0")
        self.expire(self.lease_of(first))
        return first, self.run_again(first, "b-0")

    def check(self) -> Report:
        """Verify what the database says now."""
        return SqlHistory(self.stores.database).read(lambda view: verify(view, self.expected))

    def expect(self, **fields: Any) -> None:
        """Add to what the checker is told."""
        self.expected = replace(self.expected, **fields)


Script = Callable[[World], None]
Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """A fault that somebody could make, the script that brings it out, and the invariant that names it."""

    name: str
    caught_by: str
    plant: Plant
    script: Script
    databases: tuple[str, ...]


BUGS: dict[str, Bug] = {}


def bug(caught_by: str, plant: Plant, *databases: str) -> Callable[[Script], Script]:
    """Register the script under its own name; without databases it is played on SQLite."""

    def register(script: Script) -> Script:
        BUGS[script.__name__] = Bug(script.__name__, caught_by, plant, script, databases or ("sqlite",))
        return script

    return register


BOTH = ("sqlite", "mariadb")


def rewritten(module: Any, name: str, *changes: tuple[str, str]) -> Plant:
    """Return a plant that changes parts of one statement, in both dialects, and fails if they are not there."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(module, name, changed(getattr(module, name), *changes))

    return plant


def changed(statement: Sql, *changes: tuple[str, str]) -> Sql:
    """Return a statement with parts of it replaced."""
    template, mysql = statement._template, statement._mysql
    for old, new in changes:
        assert old in template, f"the statement has no {old!r}: {template}"
        template = template.replace(old, new)
        mysql = mysql.replace(old, new) if mysql else None
    return Sql(template, *statement._lists, mysql=mysql)


def replaced(owner: Any, name: str, value: Any) -> Plant:
    """Return a plant that replaces an attribute."""
    return lambda patch: patch.setattr(owner, name, value)


def together(*plants: Plant) -> Plant:
    """Return a plant of several changes."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        for one in plants:
            one(patch)

    return plant


def line_claim(world: World, lease: int, node: str = "a") -> LedgerOutcome:
    """Submit a job and claim it under a lease that is held."""
    seq = world.stores.submit().seq
    return world.stores.commit(node, claims=(Claim(1, (seq,), Resources(1), lease_id=lease),))


def grant(seq: int, grant_of: LeaseGrant) -> Claim:
    """Return a claim of one job under a new lease."""
    mib = grant_of.memory_mib
    return Claim(1, (seq,), Resources(len(grant_of.gpus), mib), grant=grant_of)
