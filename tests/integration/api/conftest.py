"""The real application on SQLite and the embedded Redis, asked through its ASGI interface."""

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.cluster import Gpu, GpuHealth, NodeState
from orchestrator.domain.job import JobEvent, LeaseMode, Resources
from orchestrator.domain.lease import Claim, Finish, LeaseGrant, LedgerBatch, LogChunk
from orchestrator.ports import GpuRecord, NodeRecord
from orchestrator.runtime import Runtime
from orchestrator.storage.schema import upgrade


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema and nothing else, to copy."""
    path = tmp_path_factory.mktemp("schema") / "empty.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def settings(sqlite_url: str, empty_database: Path, embedded_redis_url: str, tmp_path: Path) -> Settings:
    shutil.copy(empty_database, sqlite_url.removeprefix("sqlite:///"))
    return Settings(home=tmp_path, database_url=sqlite_url, redis_url=embedded_redis_url, max_payload_bytes=64 << 10)


@pytest.fixture
def runtime(settings: Settings) -> Iterator[Runtime]:
    opened = open_runtime(settings)
    yield opened
    opened.close()


@pytest.fixture
def api(runtime: Runtime) -> Iterator[TestClient]:
    """A client of an app without a token; a failure of the app is an answer, as it is over the network."""
    with TestClient(create_app(runtime, token=None), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def register(runtime: Runtime) -> Callable[[str, int], None]:
    """Register a live host with so many GPUs."""

    def host(node: str, gpus: int) -> None:
        cards = tuple(
            GpuRecord(Gpu(f"{node}-{index}", index, "Sim", 1000, "1"), node, GpuHealth.HEALTHY, 0, 0, None, 0)
            for index in range(gpus)
        )
        now = runtime.clock.now()
        runtime.cluster.register_node(
            NodeRecord(node, "boot", f"celery@{node}", 1, NodeState.UP, ("gpu",), 2, 0, now, True, cards)
        )

    return host


class Running:
    """A job that a worker runs, as far as the database knows."""

    def __init__(self, runtime: Runtime, job_id: str) -> None:
        job = runtime.jobs.get(job_id)
        assert job is not None
        grant = LeaseGrant((), LeaseMode.EXCLUSIVE, None)
        batch = LedgerBatch(claims=(Claim(1, (job.seq,), Resources(0), grant=grant),))
        (outcome,) = runtime.ledger.commit("alpha", batch, ttl=timedelta(seconds=30)).claims
        assert outcome.lease_id is not None, outcome
        self._runtime, self._seq, self._lease, self._printed = runtime, job.seq, outcome.lease_id, 0

    def print(self, text: str) -> None:
        """Store output."""
        chunk = LogChunk(self._seq, 1, self._lease, self._printed, text)
        self._printed += 1
        self._commit(LedgerBatch(logs=(chunk,)))

    def end(self, event: JobEvent = JobEvent.SUCCEED, **values: Any) -> None:
        """End the attempt."""
        self._commit(LedgerBatch(finishes=(Finish(self._seq, 1, self._lease, event, **values),)))

    def _commit(self, batch: LedgerBatch) -> None:
        self._runtime.ledger.commit("alpha", batch, ttl=timedelta(seconds=30))


@pytest.fixture
def start(runtime: Runtime, register: Callable[[str, int], None]) -> Callable[[str], Running]:
    """Have a job run on host alpha."""

    def running(job_id: str) -> Running:
        register("alpha", 2)
        return Running(runtime, job_id)

    return running
