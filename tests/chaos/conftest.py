"""Clusters with short times on both stacks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.support import QUICK, FaultCluster


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, stack: str, times: Mapping[str, Any]
) -> Iterator[FaultCluster]:
    """A cluster without processes yet, on the stack that the test names."""
    database, stream = {
        "mariadb": ("mariadb_url", "redis_url"),
        "embedded": ("sqlite_url", "embedded_redis_url"),
    }[stack]
    urls = (request.getfixturevalue(database), request.getfixturevalue(stream))
    with FaultCluster(tmp_path, *urls, settings=times) as made:
        yield made


@pytest.fixture
def stack() -> str:
    """MariaDB and Debian's Redis, unless a test is parametrized otherwise."""
    return "mariadb"


@pytest.fixture
def times() -> Mapping[str, Any]:
    """Short ones, unless a test is parametrized otherwise."""
    return QUICK
