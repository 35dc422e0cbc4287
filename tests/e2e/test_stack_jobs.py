"""The embedded stack with the real parts: from ``orch up`` over a job to ``orch down``."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from orchestrator_cli.stack.home import Home
from orchestrator_cli.stack.supervision import Supervisor, marked_processes
from tests.e2e.conftest import Orch
from tests.support.servers import free_port
from tests.support.waiting import wait_for


def up(orch: Orch, *arguments: str) -> None:
    """Start the stack with two simulated GPUs."""
    done = orch("up", "--detach", "--simulate", "2", "--api-port", str(free_port()), *arguments)
    assert done.returncode == 0, done.stderr


def state_of(orch: Orch, job: str) -> str:
    """Return a job's state."""
    return str(json.loads(orch("status", job, "--json").stdout)["state"])


@pytest.mark.quick
@pytest.mark.timeout(200)
def test_a_job_runs_on_the_embedded_stack(orch: Orch, home: Home) -> None:
    """Its output comes back, its GPUs are what it asked for, and ``down`` leaves no process."""
    up(orch)
    done = orch("run", "--gpus", "2", "--", "printenv", "CUDA_VISIBLE_DEVICES")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().count("GPU-") == 2
    cluster = json.loads(orch("status", "--cluster", "--json").stdout)
    assert cluster["database"] == f"sqlite:///{home.sqlite_file}"
    assert orch("down").returncode == 0
    assert marked_processes(home) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("database", ["sqlite", pytest.param("mariadb", marks=pytest.mark.matrix)])
def test_a_job_outlives_its_worker_and_the_whole_stack(database: str, orch: Orch, home: Home, tmp_path: Path) -> None:
    """kill -9 of the worker ends its runner; the job runs again; and again after ``down`` and ``up``."""
    up(orch, "--database", database)
    pids = tmp_path / "pids"
    script = f"echo $$ >> {pids}; exec sleep 600"
    job = orch("submit", "--gpus", "1", "--retries", "5", "--", "sh", "-c", script).stdout.strip()

    def runs(attempt: int) -> int:
        return int(
            wait_for(
                lambda: pids.exists() and (pids.read_text().split() + [""] * attempt)[attempt - 1],
                within_seconds=60,
                describe=lambda: f"attempt {attempt} of a job that is {state_of(orch, job)}",
            )
        )

    first = runs(1)
    os.kill(Supervisor(home).states()["worker"].pid, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(first), within_seconds=10, describe="the runner's end")
    second = runs(2)
    before = time.monotonic()
    assert orch("down").returncode == 0
    assert time.monotonic() - before < 40
    assert not psutil.pid_exists(second)
    assert marked_processes(home) == []
    up(orch, "--database", database)
    runs(3)
    assert orch("cancel", job).returncode == 0
    wait_for(lambda: state_of(orch, job) == "cancelled", within_seconds=20, describe="the cancel")
    assert orch("down").returncode == 0
