"""Every store of one database, on SQLite and on MariaDB."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuRecord, NodeState
from orchestrator.domain.ids import uuid7
from orchestrator.domain.job import Job, JobEvent, JobKind, LeaseMode, NewJob, Resources
from orchestrator.domain.lease import Claim, ClaimedJob, ClaimOutcome, Finish, LeaseGrant, LedgerBatch, LedgerOutcome
from orchestrator.ports import NodeRecord, Submitted
from orchestrator.storage.admission import SqlAdmissionStore
from orchestrator.storage.cluster import SqlClusterStore
from orchestrator.storage.engine import Database, open_database
from orchestrator.storage.jobs import SqlJobStore
from orchestrator.storage.leadership import SqlLeadership
from orchestrator.storage.ledger import SqlLedgerStore
from orchestrator.storage.schema import upgrade

MEMORY_MIB = 1000
TTL = timedelta(seconds=30)


def new_job(**fields: Any) -> NewJob:
    """Return a job for one GPU, with what the test says otherwise."""
    job = NewJob(
        id=uuid7(datetime.now(UTC)),
        name="job",
        task="a.task",
        kind=JobKind.TASK,
        queue="gpu",
        payload={"args": [1]},
        headers={"argsrepr": "(1,)"},
        resources=Resources(1),
        tenant="default",
        submitted_by="test",
        priority=5,
        digest="d",
        time_limit_seconds=None,
        soft_time_limit_seconds=None,
        grace_seconds=10.0,
        max_attempts=1,
        run_at=None,
        deadline=None,
        idempotency_key=None,
    )
    return replace(job, **fields)


@dataclass(frozen=True)
class Stores:
    """All stores over one database, and what tests do with them again and again."""

    url: str
    database: Database
    jobs: SqlJobStore
    ledger: SqlLedgerStore
    cluster: SqlClusterStore
    admission: SqlAdmissionStore
    leadership: SqlLeadership

    def register(self, node: str, gpus: int, *, pid: int = 1, queues: tuple[str, ...] = ("gpu",)) -> None:
        """Register a host with GPUs ``<node>-0`` and so on."""
        cards = tuple(
            GpuRecord(Gpu(f"{node}-{index}", index, "Sim", MEMORY_MIB, "1"), node, GpuHealth.HEALTHY, 0, 0, None, None)
            for index in range(gpus)
        )
        now = datetime.now(UTC)
        self.cluster.register_node(NodeRecord(node, "boot", node, pid, NodeState.UP, queues, 2, 0, now, True, cards))

    def submit(self, **fields: Any) -> Submitted:
        """Submit one job."""
        return self.jobs.submit([new_job(**fields)]).jobs[0]

    def claim(
        self,
        seq: int,
        *gpus: str,
        node: str = "a",
        mib: int | None = None,
        ttl: timedelta = TTL,
        lease: int | None = None,
    ) -> ClaimOutcome:
        """Claim one job, on GPUs under a new lease or under one that is held."""
        resources = Resources(len(gpus) if lease is None else 1, mib)
        grant = LeaseGrant(gpus, LeaseMode.SHARED if mib else LeaseMode.EXCLUSIVE, mib) if lease is None else None
        claim = Claim(1, (seq,), resources, grant=grant, lease_id=lease)
        return self.ledger.commit(node, LedgerBatch(claims=(claim,)), ttl=ttl).claims[0]

    def start(self, *gpus: str, ttl: timedelta = TTL, **fields: Any) -> tuple[ClaimedJob, int]:
        """Submit a job, claim it on the GPUs, and return it with its lease."""
        submitted = self.submit(resources=Resources(len(gpus)), **fields)
        outcome = self.claim(submitted.seq, *gpus, ttl=ttl)
        assert outcome.lease_id is not None
        return outcome.granted[0], outcome.lease_id

    def finish(self, job: ClaimedJob, lease: int, event: JobEvent, *, node: str = "a", **fields: Any) -> LedgerOutcome:
        """Finish one attempt."""
        finish = Finish(job.seq, job.attempt, lease, event, **fields)
        return self.ledger.commit(node, LedgerBatch(finishes=(finish,)), ttl=TTL)

    def commit(self, node: str = "a", **parts: Any) -> LedgerOutcome:
        """Commit a batch of these parts for a host."""
        return self.ledger.commit(node, LedgerBatch(**parts), ttl=TTL)

    def running(self, gpu: str = "a-0", **fields: Any) -> tuple[str, Finish]:
        """Start a job on a GPU; return its id, and a finish of success for its attempt."""
        job, lease = self.start(gpu, **fields)
        return job.id, Finish(job.seq, job.attempt, lease, JobEvent.SUCCEED)

    def running_together(self, count: int, gpu: str = "a-0") -> list[tuple[str, Finish]]:
        """Start jobs under one lease; return the same of each."""
        seqs = tuple(self.submit().seq for _ in range(count))
        claim = Claim(1, seqs, Resources(1), grant=LeaseGrant((gpu,), LeaseMode.EXCLUSIVE, None))
        outcome = self.commit(claims=(claim,)).claims[0]
        assert outcome.lease_id is not None
        return [(job.id, Finish(job.seq, job.attempt, outcome.lease_id, JobEvent.SUCCEED)) for job in outcome.granted]

    def job(self, job_id: str) -> Job:
        """Return a job that exists."""
        job = self.jobs.get(job_id)
        assert job is not None
        return job

    def count(self, table: str) -> int:
        """Count the rows of a table."""
        return int(
            self.database.read(lambda c: c.exec_driver_sql(f"SELECT COUNT(*) FROM orchestrator_{table}").scalar_one())
        )

    def count_events(self, kind: str) -> int:
        """Count the events of a kind that are kept."""
        statement = text("SELECT COUNT(*) FROM orchestrator_events WHERE kind = :kind")
        return int(self.database.read(lambda c: c.execute(statement, {"kind": kind}).scalar_one()))

    def lead(self) -> int:
        """Become the leader and return the epoch."""
        return self.leadership.campaign("test", ttl=TTL).epoch

    def kinds(self, job_id: str) -> list[str]:
        """Return the kinds of a job's events, in order."""
        return [event.kind for event in self.jobs.history(job_id)]


@pytest.fixture
def stores(database_url: str) -> Iterator[Stores]:
    """Empty stores with the queue ``gpu``."""
    upgrade(database_url)
    database = open_database(database_url)
    made = Stores(
        database_url,
        database,
        SqlJobStore(database),
        SqlLedgerStore(database, max_lost=3),
        SqlClusterStore(database),
        SqlAdmissionStore(database),
        SqlLeadership(database),
    )
    made.cluster.ensure_queues(["gpu"])
    yield made
    made.leadership.close()
    database.close()
