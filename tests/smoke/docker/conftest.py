"""The same style on containers, as pytest-celery comes: our image as the worker's, Redis's as the broker's."""

from pathlib import Path
from typing import Any

import docker
import pytest
from pytest_celery import (
    DEFAULT_WORKER_VOLUME,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RedisContainer,
    RedisTestBackend,
    RedisTestBroker,
)
from pytest_docker_tools import build, container, fxtr
from redis import Redis

from orchestrator.transport import register

ROOT = Path(__file__).parents[3]
IMAGE_SECONDS = 60


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """Skip where no Docker engine answers."""
    try:
        docker.from_env().ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    register()


class StreamsBroker(RedisContainer):
    """A redis container as a broker under this product's URL scheme."""

    @property
    def client(self) -> Any:
        return Redis(port=self.port, decode_responses=True)

    @classmethod
    def prefix(cls) -> str:
        return "redis-streams://"


orchestrator_image = build(path=str(ROOT), dockerfile="deploy/Dockerfile", tag="gpu-orchestrator:smoke")

default_redis_broker = container(
    image="{default_redis_broker_image}",
    ports=fxtr("default_redis_broker_ports"),
    environment=fxtr("default_redis_broker_env"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=StreamsBroker,
    timeout=IMAGE_SECONDS,
    command=fxtr("default_redis_broker_command"),
)

default_worker_container = container(
    image="{orchestrator_image.id}",
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    volumes={"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
    wrapper_class=CeleryWorkerContainer,
    timeout=IMAGE_SECONDS,
    command=fxtr("default_worker_command"),
)


@pytest.fixture
def celery_broker(celery_redis_broker: RedisTestBroker) -> RedisTestBroker:
    """Redis alone; pytest-celery would also take RabbitMQ."""
    return celery_redis_broker


@pytest.fixture
def celery_backend(celery_redis_backend: RedisTestBackend) -> RedisTestBackend:
    """Redis alone."""
    return celery_redis_backend


@pytest.fixture
def celery_worker(celery_setup_worker: CeleryTestWorker) -> CeleryTestWorker:
    """The one worker."""
    return celery_setup_worker
