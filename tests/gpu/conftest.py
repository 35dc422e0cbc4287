"""A cluster of real processes on this machine's own GPUs, on SQLite and the embedded Redis."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.domain.cluster import GpuRecord, GpuSample
from orchestrator.domain.job import Job, JobState
from orchestrator.gpus.driver import open_driver
from tests.support.cluster import Cluster, Process
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
#: A program that uses a GPU; see there.
USE = (sys.executable, str(HERE / "use_cuda.py"))
#: An unused GPU's memory, with some room: a context takes more.
CLEAN_MIB = 100


def read_gpus() -> tuple[GpuSample, ...]:
    """Return a reading of this machine's GPUs."""
    driver = open_driver(None)
    try:
        return driver.sample()
    finally:
        driver.close()


@dataclass
class RealHost:
    """A worker on this machine's GPUs."""

    cluster: Cluster
    worker: Process

    @property
    def gpus(self) -> tuple[GpuRecord, ...]:
        """What the database has of the GPUs."""
        (node,) = self.cluster.runtime.cluster.nodes()
        return node.gpus

    def use(self, *words: str, **options: object) -> str:
        """Submit a job that uses a GPU."""
        return self.cluster.command(*USE, *words, **options)

    def wait_until_used(self, job_id: str) -> None:
        """Wait until a job has its memory."""
        self.cluster.wait_for_state(job_id, JobState.RUNNING)
        wait_for(lambda: "using" in self.cluster.output(job_id), within_seconds=30, describe=self.cluster.logs)

    def wait_until_clean(self) -> None:
        """Wait until nothing uses the GPUs' memory, as the driver tells it."""
        wait_for(
            lambda: all(gpu.used_mib < CLEAN_MIB and not gpu.processes for gpu in read_gpus()),
            within_seconds=30,
            describe=lambda: f"{read_gpus()}\n{self.cluster.logs()}",
        )

    def ended(self, *job_ids: str, within_seconds: float = 60) -> list[Job]:
        """Wait until jobs have ended and return them."""
        return self.cluster.wait_for_end(job_ids, within_seconds=within_seconds)


@pytest.fixture
def gpu() -> GpuSample:
    """The machine's first GPU, as the driver tells of it before anything of ours runs."""
    found = read_gpus()
    assert found, "there is no NVIDIA GPU here: make test-gpu is for machines that have one"
    return found[0]


@pytest.fixture
def cluster(tmp_path: Path, gpu: GpuSample, sqlite_url: str, embedded_redis_url: str) -> Iterator[Cluster]:
    """A cluster on SQLite and the embedded Redis, without processes yet."""
    with Cluster(tmp_path, sqlite_url, embedded_redis_url, settings={"sweep_interval": 0.2}) as made:
        yield made


@pytest.fixture
def host(cluster: Cluster) -> RealHost:
    """A host with this machine's GPUs, and a leader."""
    worker = cluster.worker("real", gpus=None, app="cuda_app", queues="gpu,preloads", path=HERE)
    cluster.beat()
    return RealHost(cluster, worker)
