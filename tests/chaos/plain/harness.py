"""Workers of a plain app under faults, and the count of every task's runs."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from celery import Celery

from orchestrator.streams.client import broker_url
from orchestrator.transport import register
from tests.support.distribution import write_entry_points
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
STREAM = "stream:orchestrator:celery"
PATIENCE = 60
VISIBILITY = 3
RETRY = {"max_retries": 100, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.3}


@dataclass
class Count:
    """How often each task has begun and ended."""

    begun: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)

    @property
    def twice(self) -> set[str]:
        """The tasks that began more than once."""
        return {name for name, times in self.begun.items() if times > 1}


@dataclass
class Chaos:
    """A server, workers of the app, and a producer."""

    server: RedisServer
    site: Path
    conf: dict[str, Any] = field(default_factory=dict)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    producers: list[Celery] = field(default_factory=list)

    def __post_init__(self) -> None:
        write_entry_points(self.site)
        (self.site / "runs").touch()
        options = {"visibility": VISIBILITY}
        self.conf = {
            "task_acks_late": True,
            "broker_transport_options": options,
            "task_ignore_result": True,
        } | self.conf
        self.conf |= {"task_publish_retry_policy": RETRY, "broker_connection_retry_on_startup": True}

    def producer(self, port: int | None = None) -> Celery:
        """Return an app that sends, through a proxy's port where one is given."""
        register()
        app = Celery("chaos", broker=self._broker(port), set_as_current=False)
        app.conf.update(self.conf)
        self.producers.append(app)
        return app

    def worker(self, *argv: str, port: int | None = None) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it consumes."""
        number = len(self.workers) + 1
        log = self.site / f"w{number}.log"
        sources = [self.site, HERE, ROOT]
        environment = os.environ | {
            "CHAOS_BROKER": self._broker(port),
            "CHAOS_CONF": json.dumps(self.conf),
            "CHAOS_RUNS": str(self.site / "runs"),
            "PYTHONPATH": os.pathsep.join(map(str, sources)),
        }
        command = [sys.executable, "-m", "celery", "-A", "chaos_app", "worker", "-l", "INFO", "-n", f"w{number}@chaos"]
        command += ["--without-mingle", "--without-gossip", *argv]
        with log.open("ab") as output:
            worker = subprocess.Popen(command, env=environment, cwd=self.site, stdout=output, stderr=output)
        self.workers.append(worker)
        wait_for(lambda: "ready." in log.read_text(errors="replace"), within_seconds=PATIENCE, describe=self.logs)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker and its children at once, as the end of its host would."""
        os.kill(worker.pid, signal.SIGSTOP)  # it starts nothing while its children are counted
        children = psutil.Process(worker.pid).children(recursive=True)
        worker.kill()
        worker.wait(20)
        for child in children:
            if child.is_running():
                child.kill()
        psutil.wait_procs(children, timeout=20)

    def send(self, app: Celery, count: int, **arguments: Any) -> list[str]:
        """Send tasks and return their ids; what returns was acknowledged by the broker."""
        return [app.send_task("chaos.work", kwargs=arguments).id for _ in range(count)]

    def count(self) -> Count:
        """Return how often each task has begun and ended so far."""
        count = Count()
        for line in (self.site / "runs").read_text().splitlines():
            kind, name, _pid = line.split()
            (count.begun if kind == "begin" else count.ended)[name] += 1
        return count

    def unacknowledged(self) -> set[str]:
        """Return the ids of the tasks whose entries are in the stream: acknowledged ones are deleted."""
        with self.server.client() as client:
            return {json.loads(entry[b"m"])["headers"]["id"] for _, entry in client.xrange(STREAM)}

    def wait_for_ends(self, names: list[str]) -> Count:
        """Wait until all of these have ended at least once and nothing is left in the stream."""

        def missing() -> set[str]:
            return set(names) - set(self.count().ended)

        wait_for(
            lambda: not missing() and not self.unacknowledged(),
            within_seconds=PATIENCE,
            describe=lambda: f"missing: {missing()}, in the stream: {self.unacknowledged()}\n{self.logs()}",
        )
        return self.count()

    def wait_for_begun(self, least: int) -> None:
        """Wait until so many runs have begun."""
        wait_for(lambda: self.count().begun.total() >= least, within_seconds=PATIENCE, describe=self.logs)

    def logs(self) -> str:
        """Return the ends of the workers' logs."""
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.site.glob("w*.log")))

    def close(self) -> None:
        """End everything."""
        for worker in self.workers:
            if worker.poll() is None:
                self.kill(worker)
        for app in self.producers:
            app.close()

    def _broker(self, port: int | None) -> str:
        return broker_url(f"redis://127.0.0.1:{port or self.server.port}/0")
