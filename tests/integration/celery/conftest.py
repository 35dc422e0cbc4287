"""Plain apps in processes of their own, in an environment where this product is installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module, reload
from pathlib import Path
from typing import Any

import pytest

from orchestrator.streams.client import broker_url
from orchestrator.transport import register
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
START_SECONDS = 60


@dataclass
class Plain:
    """A server, and processes of the app on it."""

    server: RedisServer
    site: Path
    conf: dict[str, Any] = field(default_factory=dict)
    broker: str = ""
    backend: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the app gets; nothing in it names this product but the broker's scheme."""
        return os.environ | {
            "PLAIN_BROKER": self.broker or broker_url(self.server.url),
            "PLAIN_BACKEND": self.backend or f"redis://127.0.0.1:{self.server.port}/1",
            "PLAIN_CONF": json.dumps(self.conf),
            "PYTHONPATH": os.pathsep.join([str(self.site), str(HERE), str(ROOT)]),
        }

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self.site / f"{name}.log").read_text(errors="replace")

    def celery(self, *argv: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run one of Celery's commands to its end."""
        command = [sys.executable, "-m", "celery", "-A", "plain_app", *argv]
        return subprocess.run(
            command, env=self.environment, cwd=self.site, capture_output=True, text=True, timeout=seconds, check=False
        )

    def spawn(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start one of Celery's commands."""
        command = [sys.executable, "-m", "celery", "-A", "plain_app", *argv]
        with (self.site / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.site, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def start_worker(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a worker; ``wait_ready`` waits for it."""
        return self.spawn(name, "worker", "-n", f"{name}@plain", "-l", "INFO", *argv)

    def wait_ready(self, *names: str) -> None:
        """Wait until these workers consume."""
        for name in names:
            wait_for(
                lambda name=name: f"{name}@plain ready." in self.log(name),
                within_seconds=START_SECONDS,
                describe=lambda name=name: self.log(name)[-3000:],
            )

    def worker(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it consumes."""
        process = self.start_worker(name, *argv)
        self.wait_ready(name)
        return process

    def stop(self, process: subprocess.Popen[bytes], signum: int = signal.SIGTERM, *, seconds: float = 40) -> int:
        """Signal a process and return its exit code."""
        process.send_signal(signum)
        return process.wait(seconds)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait(20)


@pytest.fixture(scope="module")
def plain_server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def plain(plain_server: RedisServer, tmp_path: Path) -> Iterator[Plain]:
    """Processes on an emptied server; all are ended."""
    plain_server.clear()
    entry_points(tmp_path)
    made = Plain(plain_server, tmp_path)
    yield made
    made.close()


@pytest.fixture
def app_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plain], Any]]:
    """Import the app's module as a producer does, with the settings of its workers."""
    register()  # what the entry point does in the app's own processes; kombu is long imported in this one
    modules: list[Any] = []

    def get(plain: Plain) -> Any:
        for name in ("PLAIN_BROKER", "PLAIN_BACKEND", "PLAIN_CONF"):
            monkeypatch.setenv(name, plain.environment[name])
        monkeypatch.syspath_prepend(str(HERE))
        module = reload(sys.modules["plain_app"]) if "plain_app" in sys.modules else import_module("plain_app")
        modules.append(module)
        return module

    yield get
    for module in modules:
        module.app.close()


def entry_points(directory: Path) -> None:
    """Write what an installed distribution has, from the project's own description."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines: list[str] = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    made = directory / "gpu_orchestrator_here-0.dist-info"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: gpu-orchestrator-here\nVersion: 0\n")
    (made / "entry_points.txt").write_text("\n".join(lines) + "\n")


def pool_arguments(pool: str) -> Sequence[str]:
    """Return the options of a worker with this pool."""
    return ("-P", pool, "-c", "2")
