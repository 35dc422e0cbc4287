"""Clusters whose processes suffer faults at named points, and what every case ends with."""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from orchestrator.domain.job import Job, JobState
from orchestrator.domain.request import CommandRequest
from tests.support.cluster import Cluster, Process, read_dumps
from tests.support.waiting import wait_for

#: Short times, so that a case takes seconds; still long enough for a busy machine.
QUICK: Mapping[str, Any] = {
    "lease_ttl": 4,
    "lease_margin": 1,
    "expiry_grace": 0.5,
    "leader_ttl": 2.5,
    "sweep_interval": 0.2,
    "recheck_interval": 1,
    "lost_delay": 0.1,
    "visibility": 6,
}
LONG_SECONDS = 60.0


@dataclass
class FaultCluster(Cluster):
    """A cluster some of whose processes are armed."""

    plans: dict[str, Path] = field(default_factory=dict)  # name of the process -> its plan
    ids: list[str] = field(default_factory=list)  # jobs whose submit was acknowledged

    @property
    def dumps(self) -> Path:
        """Where the jobs write down what they saw."""
        return self.home / "dumps.jsonl"

    def arm(self, name: str, point: str, do: str, *, skip: int = 0) -> Path:
        """Have the process of this name suffer a fault, once; return the file that appears when it does."""
        mark = self.home / f"{name}-{point}.mark"
        self.plans[name] = self.home / f"{name}.plan"
        self.plans[name].write_text(json.dumps([{"point": point, "do": do, "skip": skip, "mark": str(mark)}]))
        return mark

    def shift_clock(self, name: str, by: timedelta) -> Path:
        """Have the process of this name see another wall time from when the returned file is made."""
        mark = self.home / f"{name}-clock.go"
        self.plans[name] = self.home / f"{name}.plan"
        plan = [{"point": "clock", "do": "shift", "seconds": by.total_seconds(), "mark": str(mark)}]
        self.plans[name].write_text(json.dumps(plan))
        return mark

    def spawn(self, name: str, argv: Sequence[str], *, path: Path | None = None, **settings: Any) -> Process:
        """Start a process, armed if there is a plan for its name."""
        plan = self.plans.get(name)
        if plan is not None and tuple(argv[:2]) == ("orchestrator_cli", "beat"):
            # `orch beat` becomes Celery's own command by an exec, and the arming would end with it.
            argv = ("celery", "-A", "orchestrator_tasks.app", "beat", "-l", "INFO", "--pidfile=", *argv[2:])
        program = argv if plan is None else ("tests.chaos.armed", str(plan), *argv)
        return super().spawn(name, program, path=path, **settings)

    def load(self, count: int = 1, *, seconds: float = 0.1, gpus: int = 1) -> list[str]:
        """Submit jobs that write down what they see, and return their ids."""
        requests = [self.dump_job(self.dumps, seconds, gpus=gpus) for _ in range(count)]
        ids = self.submit(*requests)
        self.ids += ids
        return ids

    def await_mark(self, mark: Path) -> None:
        """Wait until the fault happens."""
        wait_for(mark.exists, within_seconds=LONG_SECONDS, describe=lambda: f"{mark.name}\n{self.logs()}")

    def await_death(self, process: Process) -> None:
        """Wait until a process has ended by SIGKILL."""
        wait_for(
            lambda: process.popen.poll() == -signal.SIGKILL, within_seconds=LONG_SECONDS, describe=lambda: self.logs()
        )

    def finish(self, *, within_seconds: float = LONG_SECONDS, **expected: Any) -> list[Job]:
        """Wait until every acknowledged job has succeeded, and check the history; return the jobs in order.

        ``expected`` is told to the checker, as in ``verify``.
        """
        jobs = self.wait_for_end(self.ids, within_seconds=within_seconds)
        assert {job.id: job.state for job in jobs} == dict.fromkeys(self.ids, JobState.SUCCEEDED), self.logs()
        report = self.verify(*([self.dumps] if self.dumps.exists() else []), acknowledged=self.ids, **expected)
        assert report.is_clean, f"{report}\n{self.logs()}"
        return jobs

    def lines(self, what: str = "start") -> list[dict[str, Any]]:
        """Return what the jobs wrote, of one kind."""
        return [line for line in read_dumps(self.dumps) if line["what"] == what]

    def wait_for_start(self, count: int = 1) -> None:
        """Wait until so many jobs have said that they run."""
        wait_for(lambda: len(self.lines()) >= count, within_seconds=LONG_SECONDS, describe=self.logs)


def stop_tree(pid: int) -> list[int]:
    """Stop a process and all that it started, as a suspended host would be; return what to resume."""
    pids = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    for one in pids:
        os.kill(one, signal.SIGSTOP)
    return pids


def elapsed(since: float) -> float:
    """Return the seconds since a monotonic instant."""
    return time.monotonic() - since


def sleeper(cluster: Cluster) -> CommandRequest:
    """Return a command that tells that it is up, and stays."""
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    return CommandRequest(argv=(sys.executable, "-c", program), cwd=str(cluster.home), gpus=1)
