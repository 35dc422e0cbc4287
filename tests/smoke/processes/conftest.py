"""Smoke tests in pytest-celery's style; its nodes are processes of this host."""

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.testing.pytest_celery import *  # noqa: F403
from orchestrator.testing.pytest_celery import RunnerWorkerContainer, WorkerContainer
from tests.support.distribution import write_entry_points

ROOT = Path(__file__).parents[3]


class PreforkWorker(WorkerContainer):
    """A plain worker, whose app knows nothing of this product."""

    @classmethod
    def command(cls, *args: str, **options: Any) -> list[str]:
        return super().command("-c", "2", "-P", "prefork", *args, **options)


class RunnerWorker(RunnerWorkerContainer):
    """A worker with this product's pool."""

    @classmethod
    def command(cls, *args: str, **options: Any) -> list[str]:
        return super().command("-c", "2", *args, **options)


@pytest.fixture
def default_worker_container_cls(request: pytest.FixtureRequest) -> type[WorkerContainer]:
    """The worker of the pool that the test's parameter names."""
    return {"prefork": PreforkWorker, "runners": RunnerWorker}[request.param]


@pytest.fixture
def default_worker_env(
    default_worker_container_cls: type[WorkerContainer], celery_worker_cluster_config: dict[str, Any], tmp_path: Path
) -> dict[str, str]:
    """The worker's variables, and what an environment with this product installed has on its path."""
    write_entry_points(tmp_path)
    environment = default_worker_container_cls.initial_env(celery_worker_cluster_config)
    sources = [tmp_path, ROOT, *(ROOT / name for name in ("tasks", "beat", "cli"))]
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], *map(str, sources)])
    return {name: str(value) for name, value in environment.items()}
