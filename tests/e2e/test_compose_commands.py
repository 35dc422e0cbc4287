"""What docker-compose.yml runs, run without Docker: its commands, its settings, its healthchecks, on real servers."""

import contextlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.commands import COMMANDS, ROOT, SOURCES, native
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import wait_for

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
STAYING = [name for name in COMMANDS if name != "migrate"]
HEALTHY_SECONDS = 60


class Installation:
    """The services of the file as processes, with ports and URLs of this test's own."""

    def __init__(self, home: Path, database_url: str, redis_url: str) -> None:
        self.home = home
        self.ports = {"8470": free_port(), "5555": free_port()}
        self.own = {
            "ORCHESTRATOR_DATABASE_URL": database_url,
            "ORCHESTRATOR_REDIS_URL": redis_url,
            "ORCHESTRATOR_API_URL": f"http://127.0.0.1:{self.ports['8470']}",
            "ORCHESTRATOR_API_PORT": str(self.ports["8470"]),
            "ORCHESTRATOR_FLOWER_PORT": str(self.ports["5555"]),
            "ORCHESTRATOR_API_TOKEN": "of-this-test",
            "ORCHESTRATOR_LOG_LEVEL": "INFO",
            "FLOWER_BASIC_AUTH": "somebody:of-this-test",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, name: str) -> dict[str, str]:
        """Return a service's environment, as the file names it; every variable of it must have a value here."""
        given = SERVICES[name]["environment"]
        filled = {key: self.own.get(key, value) for key, value in given.items()}
        assert not [key for key, value in filled.items() if "${" in value]
        base = {key: value for key, value in os.environ.items() if not key.startswith("ORCHESTRATOR_")}
        return base | {"PYTHONPATH": os.pathsep.join(SOURCES), "ORCHESTRATOR_HOME": str(self.home / name)} | filled

    def run(self, name: str, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's environment to its end."""
        ports = {f":{port}/": f":{own}/" for port, own in self.ports.items()}
        argv = native(command)
        for old, new in ports.items():
            argv = [word.replace(old, new) for word in argv]
        return subprocess.run(
            argv,
            env=self.environment(name) | variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, name: str, **variables: str) -> None:
        """Start a service."""
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                native(SERVICES[name]["command"]),
                env=self.environment(name) | variables,
                cwd=self.home,
                stdout=log,
                stderr=log,
            )

    def is_healthy(self, name: str) -> bool:
        """Tell what the service's healthcheck says."""
        assert self.processes[name].poll() is None, f"{name} ended:\n{self.log(name).read_text()[-3000:]}"
        return self.run(name, SERVICES[name]["healthcheck"]["test"][1:]).returncode == 0

    def await_health(self, name: str) -> None:
        """Return when the service is healthy."""
        wait_for(
            lambda: self.is_healthy(name),
            within_seconds=HEALTHY_SECONDS,
            describe=lambda: f"{name} to be healthy\n{self.log(name).read_text()[-3000:]}",
        )

    def log(self, name: str) -> Path:
        """Return the file of a service's output."""
        return self.home / f"{name}.log"

    def stop(self) -> dict[str, int]:
        """End every service as Docker does, and return the exit codes."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        codes = {}
        for name, process in self.processes.items():
            with contextlib.suppress(subprocess.TimeoutExpired):
                codes[name] = process.wait(30)
            process.kill()
        return codes


@pytest.fixture
def installation(tmp_path: Path, mariadb_url: str, redis_server: RedisServer) -> Iterator[Installation]:
    """An installation with a database of its own; its processes are gone afterwards."""
    redis_server.clear()
    installation = Installation(tmp_path, mariadb_url, redis_server.url)
    yield installation
    for process in installation.processes.values():
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_services_of_the_compose_file_become_healthy_and_run_a_job(installation: Installation) -> None:
    """Schema, api, beat, worker and Flower start in the file's order, pass its healthchecks, and end on TERM."""
    migrated = installation.run("migrate", SERVICES["migrate"]["command"])
    assert migrated.returncode == 0, migrated.stderr
    installation.start("api")
    installation.await_health("api")
    gpus = str(ROOT / "deploy" / "gpus.toml")
    for name in ("worker", "beat", "flower"):
        installation.start(name, **({"ORCHESTRATOR_SIMULATED_GPUS": gpus} if name == "worker" else {}))
    for name in STAYING:
        installation.await_health(name)

    done = installation.run("api", ["orch", "run", "--gpus", "2", "--", "printenv", "CUDA_VISIBLE_DEVICES"])

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().count("GPU-") == 2
    nodes = json.loads(installation.run("api", ["orch", "nodes", "--json"]).stdout)
    assert [len(node["gpus"]) for node in nodes] == [2]
    assert flower_asks_for_a_password(installation)
    codes = installation.stop()
    assert set(codes) == set(STAYING), "a service did not end on TERM"
    assert codes["worker"] == codes["beat"] == 0
    assert codes["api"] in {0, -signal.SIGTERM}  # uvicorn passes the signal on when it has shut down


def flower_asks_for_a_password(installation: Installation) -> bool:
    """Tell whether Flower's pages are closed to somebody without the password."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{installation.ports['5555']}/workers", timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code == 401
    return False
