"""The worker of Celery's suite in a process of its own, for the pool whose runners import the app by its name."""

import os
import subprocess
import sys
from pathlib import Path

from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.storage.schema import upgrade
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

SLOTS = 4


class RunnerWorker:
    """A worker with this product's pool and a ledger of its own."""

    def __init__(self, server: RedisServer, broker: str) -> None:
        self.hostname = "conformance@localhost"
        self._server, self._broker = server, broker
        self._home = server.directory / "orchestrator"
        self._log = server.directory / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "RunnerWorker":
        """Start it and wait until it consumes."""
        self._home.mkdir(exist_ok=True)
        database = f"sqlite:///{self._home / 'ledger.db'}"
        upgrade(database)
        cards = self._home / "gpus.toml"
        write_gpus(cards, make_gpus(1, owner="conformance"))
        environment = os.environ | {
            "CONFORMANCE_BROKER": self._broker,
            "ORCHESTRATOR_HOME": str(self._home),
            "ORCHESTRATOR_NODE": self.hostname.partition("@")[0],
            "ORCHESTRATOR_DATABASE_URL": database,
            "ORCHESTRATOR_REDIS_URL": self._server.url,
            "ORCHESTRATOR_SIMULATED_GPUS": str(cards),
        }
        argv = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "celery"]
        argv += ["-A", "tests.conformance.runner_app", "worker", "-l", "INFO"]
        argv += ["-n", self.hostname, "-c", str(SLOTS), "-Q", "celery"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(argv, env=environment, cwd=Path.cwd(), stdout=log, stderr=log)
        wait_for(self._is_ready, within_seconds=90, describe=self._tail)
        return self

    def stop(self) -> None:
        """Stop it warmly, and by force when that takes too long."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._tail()
        return f"{self.hostname} ready." in self._tail()

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-6000:]
