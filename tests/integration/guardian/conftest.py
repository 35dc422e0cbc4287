"""Fixtures: guardians that end with the test, and a check that nothing they started is left."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.guardian.client import GuardianSettings
from orchestrator.guardian.journal import Journal
from orchestrator.guardian.messages import RUNNER_ID, RunnerSpec
from orchestrator.guardian.processes import read_processes, read_variable
from tests.support.guardian import PROGRAMS, Host, StartHost, StartWorker, WorkerProcess


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., GuardianSettings]:
    """Return a maker of settings in the test's own directories."""

    def make(node: str = "node-a", **values: Any) -> GuardianSettings:
        defaults: dict[str, Any] = {"home": tmp_path, "lock_dir": tmp_path / "locks", "import_path": (str(PROGRAMS),)}
        return GuardianSettings(node=node, **(defaults | values))

    return make


@pytest.fixture
def start_host(settings: Callable[..., GuardianSettings]) -> Iterator[StartHost]:
    """Return a starter of guardians; closes them at the end."""
    hosts: list[Host] = []

    def start(node: str = "node-a", **values: Any) -> Host:
        hosts.append(Host(settings(node, **values)))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


@pytest.fixture
def host(start_host: StartHost) -> Host:
    """Return a guardian without GPUs."""
    return start_host()


@pytest.fixture
def start_worker(settings: Callable[..., GuardianSettings]) -> Iterator[StartWorker]:
    """Return a starter of workers in processes of their own; kills them at the end."""
    workers: list[WorkerProcess] = []

    def start(spec: RunnerSpec, node: str = "node-a", **values: Any) -> WorkerProcess:
        workers.append(WorkerProcess(settings(node, **values), spec))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """After each test no process carries the mark of any runner of its guardians."""
    yield
    marks = {
        record["mark"]
        for path in tmp_path.glob("journal/*.jsonl")
        for record in Journal(path).read()
        if "mark" in record
    }
    left = [p.pid for p in read_processes().values() if p.alive and read_variable(p.pid, RUNNER_ID) in marks]
    assert not left
