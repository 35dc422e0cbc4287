"""What the ledger's transactions cost: submit, claim and finish on MariaDB with durable commits, one connection.

No worker, no Redis: batches of 64 jobs are submitted and then claimed and finished under two leases that are held, as a
busy worker does, with the finishes of one batch and the claims of the next in one commit. Prints jobs a second, the
client's CPU and the statements and commits a job, and the slowest statements. Run: ``python -m bench.ledger``.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from sqlalchemy import event  # noqa: E402

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuRecord, NodeState  # noqa: E402
from orchestrator.domain.ids import uuid7  # noqa: E402
from orchestrator.domain.job import JobEvent, JobKind, LeaseMode, NewJob, Resources  # noqa: E402
from orchestrator.domain.lease import Claim, ClaimOutcome, Finish, LeaseGrant, LedgerBatch  # noqa: E402
from orchestrator.ports import NodeRecord  # noqa: E402
from orchestrator.storage.cluster import SqlClusterStore  # noqa: E402
from orchestrator.storage.engine import Database, open_database  # noqa: E402
from orchestrator.storage.jobs import SqlJobStore  # noqa: E402
from orchestrator.storage.ledger import SqlLedgerStore  # noqa: E402
from orchestrator.storage.schema import upgrade  # noqa: E402
from tests.support.servers import MariaDBServer  # noqa: E402

NODE = "bench"
TTL = timedelta(seconds=60)
GPUS = ("GPU-0", "GPU-1")


class Bench:
    """Stores over one fresh database, and what its statements took."""

    def __init__(self, url: str, batch: int) -> None:
        upgrade(url)
        self.database = open_database(url)
        self.jobs, self.ledger = SqlJobStore(self.database), SqlLedgerStore(self.database)
        self.batch = batch
        self.statements: dict[str, list[float]] = defaultdict(list)
        _register(self.database)
        _time_statements(self.database, self.statements)

    def submit(self, count: int) -> list[int]:
        """Submit in batches; return the seqs."""
        seqs: list[int] = []
        for _ in range(0, count, self.batch):
            outcome = self.jobs.submit([_new_job() for _ in range(self.batch)])
            seqs += [job.seq for job in outcome.jobs]
        return seqs

    def submit_singly(self, count: int) -> list[float]:
        """Submit one at a time; return the seconds of each."""
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            self.jobs.submit([_new_job()])
            seconds.append(time.perf_counter() - began)
        return seconds

    def admit(self, seqs: list[int]) -> None:
        """Admit what the window left waiting."""
        for first in range(0, len(seqs), 256):
            self.ledger.admit([(seq, NODE) for seq in seqs[first : first + 256]])

    def work(self, seqs: list[int]) -> None:
        """Claim and finish every job, a batch a commit, under one lease on each GPU."""
        finishes: tuple[Finish, ...] = ()
        leases: list[int | None] = [None] * len(GPUS)
        for first in range(0, len(seqs), self.batch):
            claims = self._claims(seqs[first : first + self.batch], leases)
            outcome = self.ledger.commit(NODE, LedgerBatch(finishes=finishes, claims=claims), ttl=TTL)
            assert not outcome.stale
            leases = [claim.lease_id for claim in outcome.claims]
            finishes = tuple(_finishes(outcome.claims))
            assert len(finishes) == len(seqs[first : first + self.batch])
        ended = tuple(lease for lease in leases if lease is not None)
        self.ledger.commit(NODE, LedgerBatch(finishes=finishes, releases=ended), ttl=TTL)

    def _claims(self, seqs: list[int], leases: list[int | None]) -> tuple[Claim, ...]:
        lines = [tuple(seqs[place :: len(GPUS)]) for place in range(len(GPUS))]
        return tuple(
            Claim(place, line, Resources(1), lease_id=lease, grant=None if lease else _grant(GPUS[place]))
            for place, (line, lease) in enumerate(zip(lines, leases, strict=True))
        )


def _grant(gpu: str) -> LeaseGrant:
    return LeaseGrant((gpu,), LeaseMode.EXCLUSIVE, None)


def _finishes(claims: tuple[ClaimOutcome, ...]) -> Iterator[Finish]:
    now = datetime.now(UTC)
    for claim in claims:
        assert claim.lease_id is not None
        for job in claim.granted:
            yield Finish(
                job.seq,
                job.attempt,
                claim.lease_id,
                JobEvent.SUCCEED,
                started_at=now,
                ended_at=now,
                pid=1,
                result={"loss": job.seq},
                exit_code=0,
                gpu_seconds=0.001,
            )


def _new_job() -> NewJob:
    return NewJob(
        id=uuid7(datetime.now(UTC)),
        name="noop",
        task="bench.noop",
        kind=JobKind.TASK,
        queue="gpu",
        payload={"args": [], "kwargs": {"rate": 0.1}},
        headers={"argsrepr": "()", "kwargsrepr": "{'rate': 0.1}"},
        resources=Resources(1),
        tenant="default",
        submitted_by="bench",
        priority=5,
        digest="0" * 64,
        time_limit_seconds=60.0,
        soft_time_limit_seconds=None,
        grace_seconds=10.0,
        max_attempts=1,
        run_at=None,
        deadline=None,
        idempotency_key=None,
    )


def _register(database: Database) -> None:
    cluster = SqlClusterStore(database)
    cluster.ensure_queues(["gpu"])
    cards = tuple(
        GpuRecord(Gpu(uuid, index, "bench", 1000, "1"), NODE, GpuHealth.HEALTHY, 0, 0, None, None)
        for index, uuid in enumerate(GPUS)
    )
    now = datetime.now(UTC)
    cluster.register_node(NodeRecord(NODE, "boot", NODE, 1, NodeState.UP, ("gpu",), 2, 0, now, True, cards))


def _time_statements(database: Database, statements: dict[str, list[float]]) -> None:
    began: list[float] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def before(*_arguments: Any) -> None:
        began.append(time.perf_counter())

    @event.listens_for(database.engine, "after_cursor_execute")
    def after(_connection: Any, _cursor: Any, statement: str, *_arguments: Any) -> None:
        statements[" ".join(statement.split())[:72]].append(time.perf_counter() - began.pop())

    @event.listens_for(database.engine, "commit")
    def commit(_connection: Any) -> None:
        statements["COMMIT"].append(0.0)


@contextmanager
def _measured(name: str, bench: Bench, jobs: int) -> Iterator[None]:
    bench.statements.clear()
    cpu, began = time.process_time(), time.perf_counter()
    yield
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    commits = len(bench.statements.pop("COMMIT", []))
    count = sum(map(len, bench.statements.values()))
    print(
        f"{name}: {jobs / wall:,.0f} jobs/s, client CPU {1000 * cpu / jobs:.3f} ms a job,"
        f" {count / jobs:.2f} statements and {commits / jobs:.3f} commits a job"
    )
    slowest = sorted(bench.statements.items(), key=lambda item: -sum(item[1]))[:8]
    for statement, seconds in slowest:
        print(
            f"    {1000 * sum(seconds) / jobs:.3f} ms a job, {1000 * sum(seconds) / len(seconds):.2f} each: {statement}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--singles", type=int, default=200)
    options = parser.parse_args()
    with MariaDBServer() as server:
        bench = Bench(server.url(server.create_database()), options.batch)
        with _measured("submit, one at a time", bench, options.singles):
            seconds = sorted(bench.submit_singly(options.singles))
        print(
            f"    p50 {1000 * seconds[len(seconds) // 2]:.2f} ms, p99 {1000 * seconds[len(seconds) * 99 // 100]:.2f} ms"
        )
        with _measured(f"submit, batches of {options.batch}", bench, options.jobs):
            seqs = bench.submit(options.jobs)
        with _measured("admit, batches of 256", bench, len(seqs)):
            bench.admit(seqs)
        with _measured(f"claim and finish, batches of {options.batch}", bench, len(seqs)):
            bench.work(seqs)
        bench.database.close()


if __name__ == "__main__":
    main()
