"""Clusters on both databases."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.collector import Collector

HERE = Path(__file__).parent


@pytest.fixture
def cluster(tmp_path: Path, sqlite_url: str, redis_url: str) -> Iterator[Cluster]:
    """A cluster on SQLite and Debian's Redis, without processes yet."""
    with Cluster(tmp_path, sqlite_url, redis_url) as made:
        yield made


@pytest.fixture
def mariadb_cluster(tmp_path: Path, mariadb_url: str, redis_url: str) -> Iterator[Cluster]:
    """A cluster on MariaDB and Debian's Redis, without processes yet."""
    with Cluster(tmp_path, mariadb_url, redis_url) as made:
        yield made


@pytest.fixture
def app(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The user's app in this process, a producer on the cluster's servers."""
    for name, value in cluster.environment(node="producer").items():
        if name.startswith("ORCHESTRATOR_"):
            monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(HERE))
    for name in [name for name in sys.modules if name in ("tasks_app", "orchestrator_tasks.command")]:
        del sys.modules[name]
    import tasks_app

    yield tasks_app.app
    tasks_app.app.close()
    del sys.modules["tasks_app"]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that processes started from here send to."""
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.server.shutdown()
    made.server.server_close()
