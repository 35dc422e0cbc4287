"""Stores over a fresh schema, on SQLite and on MariaDB."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.domain.cluster import Gpu, GpuHealth, NodeState
from orchestrator.domain.ids import uuid7
from orchestrator.domain.job import JobEvent, JobKind, LeaseMode, NewJob, Resources
from orchestrator.domain.lease import Claim, ClaimOutcome, Finish, LeaseGrant, LedgerBatch
from orchestrator.ports import GpuRecord, NodeRecord
from orchestrator.storage import schema
from orchestrator.storage.admission import SqlAdmissionStore
from orchestrator.storage.cluster import SqlClusterStore
from orchestrator.storage.engine import Database, open_database
from orchestrator.storage.jobs import SqlJobStore
from orchestrator.storage.leadership import SqlLeadership
from orchestrator.storage.ledger import SqlLedgerStore

TTL = timedelta(seconds=30)


@dataclass
class Stores:
    """Every store over one database, and short ways to common situations."""

    database: Database
    keys: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.jobs = SqlJobStore(self.database)
        self.ledger = SqlLedgerStore(self.database)
        self.cluster = SqlClusterStore(self.database)
        self.admission = SqlAdmissionStore(self.database)
        self.leadership = SqlLeadership(self.database)

    def submit(self, **changes: Any) -> tuple[int, str]:
        """Submit a job that needs one GPU and is admitted at once; return its seq and id."""
        submitted = self.jobs.submit([new_job(**changes)]).jobs[0]
        return submitted.seq, submitted.id

    def claim(
        self, *seqs: int, node: str = "host-a", gpus: tuple[str, ...] = ("GPU-a0",), lease_id: int | None = None
    ) -> ClaimOutcome:
        """Claim jobs under a new exclusive lease, or under a held one."""
        grant = LeaseGrant(gpus, LeaseMode.EXCLUSIVE, None) if lease_id is None else None
        claim = Claim(next(self.keys), seqs, Resources(len(gpus)), grant=grant, lease_id=lease_id)
        return self.ledger.commit(node, LedgerBatch(claims=(claim,)), ttl=TTL).claims[0]

    def finish(self, *finishes: Finish, node: str = "host-a") -> tuple[Finish, ...]:
        """Commit finishes; return the stale ones."""
        return self.ledger.commit(node, LedgerBatch(finishes=finishes), ttl=TTL).stale

    def running(self, **changes: Any) -> tuple[str, Finish]:
        """Submit and claim a job; return its id, and a finish of success for its attempt."""
        seq, job_id = self.submit(**changes)
        outcome = self.claim(seq)
        assert outcome.lease_id is not None
        return job_id, Finish(seq, outcome.granted[0].attempt, outcome.lease_id, JobEvent.SUCCEED)

    def kinds(self, job_id: str) -> list[str]:
        """Return the words of a job's history."""
        return [event.kind for event in self.jobs.history(job_id)]

    def scalar(self, query: str) -> Any:
        """Return the one value that a query finds."""
        return self.database.read(lambda c: c.exec_driver_sql(query).scalar())


def new_job(**changes: Any) -> NewJob:
    """Return a request for one GPU."""
    fields: dict[str, Any] = {
        "id": uuid7(datetime.now(UTC)),
        "name": "train",
        "task": "tests.train",
        "kind": JobKind.TASK,
        "queue": "gpu",
        "payload": {"args": [1]},
        "headers": {},
        "resources": Resources(1),
        "tenant": "team",
        "submitted_by": "ada",
        "priority": 5,
        "digest": "d",
        "time_limit_seconds": None,
        "soft_time_limit_seconds": None,
        "grace_seconds": 10.0,
        "max_attempts": 1,
        "run_at": None,
        "deadline": None,
        "idempotency_key": None,
    }
    return NewJob(**(fields | changes))


def host(name: str, *, gpus: int = 2, pid: int = 1) -> NodeRecord:
    """Return a host whose GPUs are named after its last letter: GPU-a0, GPU-a1."""
    cards = [Gpu(f"GPU-{name[-1]}{index}", index, "T", 1000, "1") for index in range(gpus)]
    records = tuple(GpuRecord(card, name, GpuHealth.HEALTHY, 0, 0, None, None) for card in cards)
    now = datetime.now(UTC)
    return NodeRecord(name, "boot", f"celery@{name}", pid, NodeState.UP, ("gpu",), 2, 0, now, True, records)


@pytest.fixture
def open_stores(database_url: str) -> Iterator[Callable[[], Stores]]:
    """Open the stores of one migrated database, each time with connections of their own."""
    schema.upgrade(database_url)
    opened: list[Stores] = []

    def connect() -> Stores:
        opened.append(Stores(open_database(database_url)))
        return opened[-1]

    yield connect
    for stores in opened:
        stores.database.close()


@pytest.fixture
def stores(open_stores: Callable[[], Stores]) -> Stores:
    """Stores with a queue and two hosts of two GPUs."""
    stores = open_stores()
    stores.cluster.ensure_queues(["gpu"])
    stores.cluster.register_node(host("host-a"))
    stores.cluster.register_node(host("host-b"))
    return stores
