"""Clusters with short times on both stacks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.support import QUICK, FaultCluster


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path, stack: str) -> Iterator[FaultCluster]:
    """A cluster without processes yet, on the stack that the test names."""
    database, stream = {
        "mariadb": ("mariadb_url", "redis_url"),
        "embedded": ("sqlite_url", "embedded_redis_url"),
    }[stack]
    urls = (request.getfixturevalue(database), request.getfixturevalue(stream))
    with FaultCluster(tmp_path, *urls, settings=QUICK) as made:
        yield made


@pytest.fixture
def stack() -> str:
    """MariaDB and Debian's Redis, unless a test is parametrized otherwise."""
    return "mariadb"
