"""The real application on SQLite and the embedded Redis, asked through its ASGI interface."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.runtime import Runtime
from orchestrator.storage.schema import upgrade
from tests.support import running
from tests.support.running import Running

LOCAL = "http://127.0.0.1:8470"
#: The installation's own token, with every right.
OWN = "own"
#: What a request has with it.
AUTHORIZED = {"Authorization": f"Bearer {OWN}"}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema and nothing else, to copy."""
    path = tmp_path_factory.mktemp("schema") / "empty.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def settings(sqlite_url: str, empty_database: Path, embedded_redis_url: str, tmp_path: Path) -> Settings:
    shutil.copy(empty_database, sqlite_url.removeprefix("sqlite:///"))
    return Settings(home=tmp_path, database_url=sqlite_url, redis_url=embedded_redis_url, max_payload_bytes=64 << 10)


@pytest.fixture
def runtime(settings: Settings) -> Iterator[Runtime]:
    opened = open_runtime(settings)
    yield opened
    opened.close()


@pytest.fixture
def api(runtime: Runtime) -> Iterator[TestClient]:
    """A client with every right; a failure of the app is an answer, as it is over the network."""
    with client_of(runtime) as client:
        yield client


def client_of(runtime: Runtime, **options: Any) -> TestClient:
    """Return a client with every right of an app over this runtime."""
    app = create_app(runtime, token=OWN)
    return TestClient(app, LOCAL, headers=AUTHORIZED, **({"raise_server_exceptions": False} | options))


@pytest.fixture
def register(runtime: Runtime) -> Callable[[str, int], None]:
    """Register a live host with so many GPUs."""
    return lambda node, gpus: running.register(runtime, node, gpus)


@pytest.fixture
def start(runtime: Runtime) -> Callable[[str], Running]:
    """Have a job run on host alpha."""

    def on_alpha(job_id: str) -> Running:
        running.register(runtime, "alpha", 2)
        return Running(runtime, job_id)

    return on_alpha
