"""pytest-celery without Docker: its nodes as processes of this host, on our transport and with our pool.

In a ``conftest.py``, after which ``celery_setup`` and all that hangs on it work as pytest-celery's manual says::

    from orchestrator.testing.pytest_celery import *  # noqa: F403

Broker and backend are redis-servers of Debian's on free ports, the broker with this product's URL scheme. The worker is
a plain Celery worker (prefork unless ``default_worker_command`` says otherwise); with the fixture
``default_worker_container_cls`` returning ``RunnerWorkerContainer`` it is a worker with this product's pool, with
simulated GPUs and a ledger of its own. Needs the packages ``pytest-celery`` and ``setpriv`` of util-linux.
"""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

import pytest
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestContainer,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RedisContainer,
    RedisTestBackend,
    RedisTestBroker,
)
from redis import Redis

from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.storage.schema import upgrade
from orchestrator.streams.client import broker_url
from orchestrator.testing.process_container import ProcessContainer, write_files
from orchestrator.transport import register

__all__ = [
    "OnProcess",
    "RedisStreamsContainer",
    "RunnerWorkerContainer",
    "WorkerContainer",
    "celery_backend",
    "celery_backend_cluster",
    "celery_broker",
    "celery_broker_cluster",
    "celery_worker",
    "default_redis_backend",
    "default_redis_broker",
    "default_worker_container",
    "default_worker_container_cls",
    "default_worker_utils_module",
    "process_container",
]

READY_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.05
REDIS_PORT: Final = "6379/tcp"
VOLUME: Final = "/app"  # where pytest-celery's workers find the app in their containers

MakeContainer = Callable[..., ProcessContainer]


class OnProcess(CeleryTestContainer):
    """A pytest-celery container whose engine is ``ProcessContainer``."""

    _container: ProcessContainer

    def get_open_tcp_ports(self) -> list[str]:
        """Return the container's ports behind which somebody listens on the host."""
        listening = set(super().get_open_tcp_ports())
        ports = self.attrs["NetworkSettings"]["Ports"]
        return [port.split("/")[0] for port, hosts in ports.items() if hosts[0]["HostPort"] in listening]

    def restart(self, timeout: int = 10) -> None:
        """Restart and return when it is ready again."""
        self._container.restart(timeout=timeout)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Return when it is ready.

        Raises:
            AssertionError: If that takes longer than a minute; it has the log.
            pytest_docker_tools.exceptions.ContainerFailed: If it ended.
        """
        deadline = time.monotonic() + READY_SECONDS
        while not self.ready():
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} is not ready:\n{self.logs()[-4000:]}")
            time.sleep(POLL_SECONDS)

    def teardown(self) -> None:
        """End the process."""
        self._container.remove()

    def _wait_ready(self, timeout: int = 30) -> bool:
        # Only what was said since the last start counts: the prompt of the run before is still in the log.
        return (self.ready_prompt or "") in self._container.logs_since_start()


class ProcessRedisContainer(OnProcess, RedisContainer):
    """A redis-server process."""

    @property
    def client(self) -> Any:
        """A client, whatever the scheme of the node's URL."""
        return Redis.from_url(self.redis_url, decode_responses=True)

    @property
    def redis_url(self) -> str:
        """The URL for clients of Redis."""
        return f"redis://127.0.0.1:{self.port}/{self.vhost}"

    @property
    def url(self) -> str:
        """The URL for workers, which run on the same host."""
        return self.redis_url

    @property
    def host_url(self) -> str:
        """The URL for the test."""
        return self.url

    @property
    def port(self) -> int:
        """The port on the host."""
        return int(self.ports[REDIS_PORT][0])


class RedisStreamsContainer(ProcessRedisContainer):
    """A redis-server process as a broker under this product's URL scheme."""

    @property
    def url(self) -> str:
        """The broker's URL."""
        return broker_url(self.redis_url)


class WorkerContainer(OnProcess, CeleryWorkerContainer):
    """A worker process of the pool that its command names."""

    @classmethod
    def prepare(cls, directory: Path, broker: str) -> dict[str, str]:
        """Put more than the app into the worker's directory and return more variables for it."""
        return {}


class RunnerWorkerContainer(WorkerContainer):
    """A worker process with this product's pool, two simulated GPUs and a ledger in its directory."""

    @classmethod
    def app_module(cls) -> ModuleType:
        """The app, given to ``install``."""
        from orchestrator.testing import pytest_celery_app

        return pytest_celery_app

    @classmethod
    def prepare(cls, directory: Path, broker: str) -> dict[str, str]:
        """Make the database and the GPUs."""
        home = directory / "orchestrator-home"
        home.mkdir()
        database, cards = f"sqlite:///{home / 'ledger.db'}", home / "gpus.toml"
        upgrade(database)
        write_gpus(cards, make_gpus(2, owner=directory.name))
        return {
            "ORCHESTRATOR_HOME": str(home),
            "ORCHESTRATOR_DATABASE_URL": database,
            "ORCHESTRATOR_REDIS_URL": broker.replace(broker_url("redis://"), "redis://"),
            "ORCHESTRATOR_SIMULATED_GPUS": str(cards),
        }


RedisKind = TypeVar("RedisKind", bound=ProcessRedisContainer)


@pytest.fixture
def process_container() -> Iterator[MakeContainer]:
    """Start processes as containers: ``process_container(argv, name=…, environment=…, ports=…)``; all are ended."""
    directories: list[Path] = []
    containers: list[ProcessContainer] = []

    def make(argv: list[str], *, name: str, directory: Path | None = None, **options: Any) -> ProcessContainer:
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix=f"pytest-celery-{name}-"))
        directories.append(directory)
        containers.append(ProcessContainer(argv, directory=directory, name=name, **options))
        containers[-1].start()
        return containers[-1]

    yield make
    for container in reversed(containers):
        container.remove()
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def default_redis_broker(
    process_container: MakeContainer, default_redis_broker_command: list[str]
) -> RedisStreamsContainer:
    """The broker's server."""
    register()  # the test's own process imported kombu long ago
    return _redis(RedisStreamsContainer, process_container, default_redis_broker_command, "broker")


@pytest.fixture
def default_redis_backend(
    process_container: MakeContainer, default_redis_backend_command: list[str]
) -> ProcessRedisContainer:
    """The result backend's server."""
    return _redis(ProcessRedisContainer, process_container, default_redis_backend_command, "backend")


@pytest.fixture
def celery_broker(default_redis_broker: RedisStreamsContainer) -> Iterator[RedisTestBroker]:
    """The one broker that there is without containers."""
    broker = RedisTestBroker(default_redis_broker)
    yield broker
    broker.teardown()


@pytest.fixture
def celery_backend(default_redis_backend: ProcessRedisContainer) -> Iterator[RedisTestBackend]:
    """The one result backend that there is without containers."""
    backend = RedisTestBackend(default_redis_backend)
    yield backend
    backend.teardown()


@pytest.fixture
def celery_broker_cluster(celery_broker: RedisTestBroker) -> CeleryBrokerCluster:
    """A cluster of the one broker."""
    return CeleryBrokerCluster(celery_broker)


@pytest.fixture
def celery_backend_cluster(celery_backend: RedisTestBackend) -> CeleryBackendCluster:
    """A cluster of the one result backend."""
    return CeleryBackendCluster(celery_backend)


@pytest.fixture
def celery_worker(celery_setup_worker: CeleryTestWorker) -> CeleryTestWorker:
    """The one worker, asked for by its name, so that fixtures beneath it may be parametrized."""
    return celery_setup_worker


@pytest.fixture
def default_worker_container_cls() -> type[WorkerContainer]:
    """The worker's class; ``RunnerWorkerContainer`` has this product's pool."""
    return WorkerContainer


@pytest.fixture
def default_worker_utils_module() -> ModuleType:
    """What the worker's nodes run inside their containers; it sees the processes of its own container alone."""
    from orchestrator.testing import pytest_celery_utils

    return pytest_celery_utils


@pytest.fixture
def default_worker_container(
    process_container: MakeContainer,
    default_worker_container_cls: type[WorkerContainer],
    default_worker_command: list[str],
    default_worker_env: dict[str, str],
    default_worker_initial_content: dict[str, bytes],
) -> WorkerContainer:
    """The worker, ready."""
    directory = Path(tempfile.mkdtemp(prefix="pytest-celery-worker-"))
    write_files(directory, default_worker_initial_content)
    path = [str(directory) if part == VOLUME else part for part in default_worker_env["PYTHONPATH"].split(os.pathsep)]
    path += [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    more = default_worker_container_cls.prepare(directory, default_worker_env["CELERY_BROKER_URL"])
    environment = default_worker_env | more
    environment["PYTHONPATH"] = os.pathsep.join(path)
    container = process_container(default_worker_command, name="worker", directory=directory, environment=environment)
    worker = default_worker_container_cls(container)
    worker.wait_until_ready()
    return worker


def _redis(kind: type[RedisKind], process_container: MakeContainer, command: list[str], name: str) -> RedisKind:
    port = _free_port()
    argv = [*command, "--bind", "127.0.0.1", "--port", str(port)]
    made = kind(process_container(argv, name=name, ports={REDIS_PORT: port}))
    made.wait_until_ready()
    return made


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
