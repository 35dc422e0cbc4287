"""Clusters on both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster


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
