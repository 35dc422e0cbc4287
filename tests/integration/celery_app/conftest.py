"""The processes of a typical deployment: flask, worker, beat and Flower, with nothing changed but the broker's URL."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.streams.client import broker_url
from tests.support.distribution import write_entry_points
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PATIENCE = 60


@dataclass
class Deployment:
    """Processes of one application."""

    server: RedisServer
    site: Path
    code: Path = HERE
    variables: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def broker(self) -> str:
        """The one URL that differs from an installation on stock Redis."""
        return broker_url(self.server.url)

    def run(self, name: str, module: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a module of the environment."""
        environment = os.environ | self.variables
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (self.site, self.code, ROOT)))
        with (self.site / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *argv], env=environment, cwd=self.site, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self.site / f"{name}.log").read_text(errors="replace")

    def wait_for_log(self, name: str, words: str) -> None:
        """Wait until a process has said this."""
        wait_for(lambda: words in self.log(name), within_seconds=PATIENCE, describe=lambda: self.log(name)[-4000:])

    def wait_for_answer(self, name: str, url: str) -> Any:
        """Wait until a server answers a URL well, and return the JSON of the answer."""

        def answer() -> Any:
            try:
                reply = httpx.get(url, timeout=10)
            except httpx.TransportError:
                return None
            return reply if reply.status_code == httpx.codes.OK else None

        reply = wait_for(answer, within_seconds=PATIENCE, describe=lambda: self.log(name)[-4000:])
        return reply.json() if "json" in reply.headers.get("content-type", "") else reply.text

    def close(self) -> None:
        """End everything."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


@pytest.fixture
def deployment(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """Processes on an emptied server; all are ended."""
    write_entry_points(tmp_path)
    made = Deployment(redis_server, tmp_path)
    yield made
    made.close()


@pytest.fixture
def port() -> int:
    """A free port."""
    return free_port()
