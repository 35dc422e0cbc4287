"""A cluster whose workers run the pools' app."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.pool import PoolChange, PoolRequest, PoolStanding
from orchestrator.services.pools import PoolService
from tests.support.cluster import Cluster, Process
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
QUEUES = "gpu,preloads"
#: The leader looks after pools once in so many seconds, and these tests wait for it again and again.
OFTEN = {"sweep_interval": 0.2}


@dataclass
class Pools:
    """A cluster with pools."""

    cluster: Cluster

    def worker(self, node: str, *, gpus: int = 1, **settings: Any) -> Process:
        """Start a worker of the pools' app."""
        return self.cluster.worker(node, gpus=gpus, app="pools_app", queues=QUEUES, path=HERE, **settings)

    def start(self, name: str, **fields: Any) -> PoolStanding:
        """Start a pool."""
        request = PoolRequest(**{"name": name, "task": "p.load", "gpus": 1, **fields})
        return PoolService(self.cluster.runtime).start(request, by="test")

    def change(self, name: str, **fields: Any) -> PoolStanding:
        """Change a pool."""
        return PoolService(self.cluster.runtime).change(name, PoolChange(**fields), by="test")

    def standing(self, name: str) -> PoolStanding:
        """Return a pool as it is now."""
        return self.cluster.runtime.pools.standing(name)

    def wait(self, name: str, reached: Callable[[PoolStanding], bool], within_seconds: float = 40) -> PoolStanding:
        """Wait until a pool is as a test wants it."""

        def look() -> PoolStanding | None:
            standing = self.standing(name)
            return standing if reached(standing) else None

        found = wait_for(look, within_seconds=within_seconds, describe=lambda: self._describe(name))
        assert found is not None
        return found

    def wait_for_runners(self, name: str, count: int, within_seconds: float = 40) -> PoolStanding:
        """Wait until so many runners serve, and no more are wanted."""
        return self.wait(name, lambda standing: len(serving(standing)) == count, within_seconds)

    def ask(self, model: str, seconds: float = 0.0, **options: Any) -> str:
        """Submit a job that uses a model."""
        return self.cluster.task("p.ask", seconds, model=model, **options)

    def _describe(self, name: str) -> str:
        return f"{self.standing(name)}\n{self.cluster.logs()}"


def serving(standing: PoolStanding) -> list[int]:
    """Return the leases of the runners that take jobs."""
    return [one.lease_id for one in standing.runners if one.leave is None and one.ended_at is None]


@pytest.fixture
def pools(tmp_path: Path, sqlite_url: str, redis_url: str) -> Iterator[Pools]:
    """A cluster on SQLite and Debian's Redis, without processes yet."""
    with Cluster(tmp_path, sqlite_url, redis_url, settings=OFTEN) as made:
        yield Pools(made)


@pytest.fixture
def mariadb_pools(tmp_path: Path, mariadb_url: str, redis_url: str) -> Iterator[Pools]:
    """The same on MariaDB."""
    with Cluster(tmp_path, mariadb_url, redis_url, settings=OFTEN) as made:
        yield Pools(made)
