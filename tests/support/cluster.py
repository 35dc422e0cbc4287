"""A cluster of real processes for tests: workers that play hosts, beat and api, on servers that the test gives.

Whatever a test is about, its history must hold every invariant when it ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.job import TERMINAL_STATES, Job, JobState
from orchestrator.domain.request import CommandRequest, Request, TaskRequest
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.home import make_token
from orchestrator.runtime import Runtime
from orchestrator.services.submit import SubmitService
from orchestrator.storage.engine import open_database
from orchestrator.storage.history import SqlHistory
from orchestrator.storage.schema import upgrade
from orchestrator.testing import runner_dump
from orchestrator.testing.history import Expectations, Report, verify
from orchestrator.testing.runner_spans import load_spans
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
SOURCES = os.pathsep.join([str(ROOT), *(str(ROOT / name) for name in ("tasks", "beat", "cli"))])
START_SECONDS = 90.0

#: A program that writes down which GPUs it saw, and when, outside the system; takes the file and how long to run.
DUMP = (sys.executable, runner_dump.__file__)


@dataclass
class Process:
    """One process of the cluster and its log."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self, signum: int = signal.SIGTERM, *, within_seconds: float = 40) -> int:
        """Signal it, wait for its end, and return its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(signum)
        return self.popen.wait(within_seconds)


@dataclass
class Cluster:
    """Everything that a test of several processes needs; ``with`` ends every process."""

    home: Path
    database_url: str
    redis_url: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # more settings of every process
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        upgrade(self.database_url)
        self.runtime: Runtime = open_runtime(
            Settings(home=self.home, database_url=self.database_url, redis_url=self.redis_url, **self.settings)
        )
        self.service = SubmitService(self.runtime)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.popen.kill()
        for process in self.processes:
            process.popen.wait(20)
        self.runtime.close()
        if error is None:
            report = self.verify(settled=False)
            assert report.is_clean, f"{report}\n{self.logs()}"

    @property
    def token(self) -> str:
        """The bearer token of an api of the cluster, whether it has started or not: the home's."""
        return make_token(self.home).read_text().strip()

    @property
    def authorized(self) -> dict[str, str]:
        """The headers of a request with every right."""
        return {"Authorization": f"Bearer {self.token}"}

    def environment(self, **more: Any) -> dict[str, str]:
        """Return the environment of a process of the cluster."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
        settings = {"home": self.home, "database_url": self.database_url, "redis_url": self.redis_url}
        settings |= {**self.settings, **more}
        return inherited | {
            "PYTHONPATH": SOURCES,
            **{f"ORCHESTRATOR_{name.upper()}": str(value) for name, value in settings.items()},
        }

    def spawn(self, name: str, argv: Sequence[str], *, path: Path | None = None, **settings: Any) -> Process:
        """Start a process; ``path`` is one more place of modules."""
        environment = self.environment(**settings)
        if path is not None:
            environment["PYTHONPATH"] += f"{os.pathsep}{path}"
        log = self.home / f"{name}.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", *argv],
                env=environment,
                cwd=self.home,
                stdout=output,
                stderr=output,
            )
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def worker(
        self,
        node: str,
        *,
        gpus: int | None = 2,
        slots: int = 2,
        app: str = "orchestrator_tasks.app",
        queues: str = "gpu",
        path: Path | None = None,
        **settings: Any,
    ) -> Process:
        """Start a worker that plays a host, by Celery's own command, and wait until it has registered.

        ``path`` is where the app's module is found, when it is a test's own. Its GPUs are simulated; with ``gpus=None``
        they are the machine's.
        """
        if gpus is not None:
            cards = self.home / f"{node}.toml"
            if not cards.exists():
                write_gpus(cards, make_gpus(gpus, owner=f"{self.home.name}-{node}"))
            settings["simulated_gpus"] = cards
        command = ["celery", "-A", app, "worker", "-Q", queues, "-c", str(slots), "-l", "INFO", "-E"]
        command += ["-n", f"orchestrator@{node}"]
        process = self.spawn(node, command, path=path, node=node, **settings)
        self.wait_for_node(node, process)
        return process

    def beat(self, name: str = "beat", **settings: Any) -> Process:
        """Start beat and wait until somebody leads."""
        process = self.spawn(name, ["orchestrator_cli", "beat", "-s", str(self.home / f"{name}.schedule")], **settings)
        wait_for(self.runtime.leadership.current, within_seconds=START_SECONDS, describe=process.tail)
        return process

    def wait_for_node(self, node: str, process: Process) -> None:
        """Wait until a worker of this process id has registered the host."""

        def registered() -> bool:
            assert process.popen.poll() is None, f"worker {node} ended:\n{process.tail()}"
            return any(
                record.name == node and record.live and record.pid in family(process.pid)
                for record in self.runtime.cluster.nodes()
            )

        wait_for(registered, within_seconds=START_SECONDS, describe=process.tail)

    def submit(self, *requests: Request) -> list[str]:
        """Submit and return the ids."""
        return [job.id for job in self.service.submit(requests)]

    def command(self, *argv: str, **options: Any) -> str:
        """Submit a command and return its id."""
        return self.submit(CommandRequest(argv=argv, cwd=str(self.home), **options))[0]

    def task(self, name: str, *args: Any, **options: Any) -> str:
        """Submit a task and return its id."""
        return self.submit(TaskRequest(task=name, args=args, **options))[0]

    def dump_job(self, file: Path, seconds: float, *, gpus: int) -> CommandRequest:
        """Return a command that writes down which GPUs it saw."""
        return CommandRequest(argv=(*DUMP, str(file), str(seconds)), cwd=str(self.home), gpus=gpus)

    def job(self, job_id: str) -> Job:
        """Return a job."""
        job = self.runtime.jobs.get(job_id)
        assert job is not None
        return job

    def wait_for_state(self, job_id: str, *states: JobState, within_seconds: float = 30) -> Job:
        """Wait until a job is in one of the states."""

        def reached() -> Job | None:
            job = self.job(job_id)
            if job.state not in states and job.state in TERMINAL_STATES:
                raise AssertionError(f"job is {job.state}: {job.reason or job.error}\n{self.logs()}")
            return job if job.state in states else None

        found = wait_for(reached, within_seconds=within_seconds, describe=lambda: f"{self.job(job_id)}\n{self.logs()}")
        assert found is not None
        return found

    def wait_for_end(self, job_ids: Sequence[str], *, within_seconds: float = 60) -> list[Job]:
        """Wait until all have ended and return them."""
        wait_for(
            lambda: all(self.job(job_id).state in TERMINAL_STATES for job_id in job_ids),
            within_seconds=within_seconds,
            describe=lambda: f"{self.runtime.jobs.count_by_state()}\n{self.logs()}",
        )
        return [self.job(job_id) for job_id in job_ids]

    def output(self, job_id: str) -> str:
        """Return what a job printed."""
        return "".join(
            text for _, _, text in self.runtime.jobs.logs(job_id, after=None, limit=1000, attempt=None).chunks
        )

    def verify(self, *dumps: Path, settled: bool = True, acknowledged: Sequence[str] = (), **more: Any) -> Report:
        """Check the history, what jobs dumped and what the guardians journaled against every invariant.

        ``more`` are further expectations: ``skew=None`` where a guardian was stopped, ``overdue`` where a leader leads.
        """
        spans = load_spans([path for path in (*dumps, self.home / "journal") if path.exists()])
        return verify_database(
            self.database_url, Expectations(spans, settled=settled, acknowledged=acknowledged, **more)
        )

    def logs(self) -> str:
        """Return the ends of all processes' logs."""
        return "\n".join(f"--- {process.name}\n{process.tail()}" for process in self.processes)


def verify_database(url: str, expected: Expectations) -> Report:
    """Check the history of the database at a URL."""
    database = open_database(url)
    try:
        return SqlHistory(database).read(lambda view: verify(view, expected))
    finally:
        database.close()


def family(pid: int) -> set[int]:
    """Return the process and all that it started and that still live."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    return {pid}


def read_dumps(file: Path) -> list[dict[str, Any]]:
    """Return the lines that the dumping jobs wrote."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
