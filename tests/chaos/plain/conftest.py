"""A server for each test, since it is killed, and workers on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.plain.harness import Chaos
from tests.support.servers import RedisServer


@pytest.fixture
def redis_options() -> tuple[str, ...]:
    """Without persistence, unless a test is parametrized otherwise."""
    return ()


@pytest.fixture
def chaos(tmp_path: Path, redis_options: tuple[str, ...]) -> Iterator[Chaos]:
    """An own server, and whatever the test starts on it; all is ended."""
    with RedisServer(options=redis_options) as server:
        made = Chaos(server, tmp_path)
        try:
            yield made
        finally:
            made.close()
