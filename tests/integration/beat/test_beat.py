"""Beat as real processes: one leads, the others stand by, the schedule fires once each time."""

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.job import Job
from orchestrator.domain.request import CommandRequest
from orchestrator.ports import JobFilter
from orchestrator.runtime import Runtime
from orchestrator.services.submit import SubmitService
from orchestrator.storage.schema import upgrade
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[3]
LEADER_TTL = 3.0


@pytest.fixture
def environment(tmp_path: Path, database_url: str, embedded_redis_url: str) -> dict[str, str]:
    """The settings of every process of a test."""
    upgrade(database_url)
    return {
        "ORCHESTRATOR_HOME": str(tmp_path / "home"),
        "ORCHESTRATOR_DATABASE_URL": database_url,
        "ORCHESTRATOR_REDIS_URL": embedded_redis_url,
        "ORCHESTRATOR_LEADER_TTL": str(LEADER_TTL),
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "tasks", "beat")),
        "PATH": os.environ["PATH"],
    }


@pytest.fixture
def runtime(
    database_url: str, embedded_redis_url: str, tmp_path: Path, environment: dict[str, str]
) -> Iterator[Runtime]:
    opened = open_runtime(Settings(home=tmp_path / "home", database_url=database_url, redis_url=embedded_redis_url))
    yield opened
    opened.close()


@contextmanager
def beat(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One beat process; killed at the end if it still runs."""
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.beat.app", "beat", "-l", "INFO", "--pidfile="]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait(10)


def ticks(runtime: Runtime) -> list[Job]:
    return [job for job in runtime.jobs.list_jobs(JobFilter(limit=500)) if job.task == "beat_test.tick"]


def leader_pid(runtime: Runtime) -> int | None:
    term = runtime.leadership.current()
    return None if term is None else int(term.holder.split(":")[1])


def eventually(what: str, condition: Callable[[], bool], seconds: float = 20) -> None:
    wait_for(condition, within_seconds=seconds, describe=what)


def freeze(process: subprocess.Popen[bytes], database_url: str) -> None:
    """Stop a process, though not while it writes: SQLite's only lock would stay held until the process goes on.

    (MariaDB gives the locks of an idle transaction up by itself.)
    """
    process.send_signal(signal.SIGSTOP)
    if not database_url.startswith("sqlite"):
        return

    def is_free() -> bool:
        probe = sqlite3.connect(database_url.removeprefix("sqlite:///"), timeout=1, isolation_level=None)
        try:
            probe.execute("BEGIN IMMEDIATE")
            probe.execute("ROLLBACK")
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGSTOP)
            return False
        else:
            return True
        finally:
            probe.close()

    eventually("it is stopped outside a transaction", is_free)


@pytest.mark.slow
def test_one_beat_leads_and_another_takes_over(environment: dict[str, str], runtime: Runtime, tmp_path: Path) -> None:
    """The schedule fires once a second whoever leads; a killed leader is replaced, a stopped one hands over."""
    with beat(environment, tmp_path / "one.log") as one, beat(environment, tmp_path / "two.log") as two:
        eventually("one leads", lambda: leader_pid(runtime) in {one.pid, two.pid})
        leader, standby = (one, two) if leader_pid(runtime) == one.pid else (two, one)
        eventually("the schedule fires", lambda: len(ticks(runtime)) >= 3)

        leader.kill()
        eventually("the standby leads", lambda: leader_pid(runtime) == standby.pid, LEADER_TTL + 8)
        before = len(ticks(runtime))
        eventually("the standby fires", lambda: len(ticks(runtime)) >= before + 2)
        assert standby.poll() is None

        standby.terminate()
        assert standby.wait(15) == 0
        assert runtime.leadership.current() is None

    fired = sorted(job.created_at for job in ticks(runtime))
    gaps = [later - earlier for earlier, later in itertools.pairwise(fired)]
    assert min(gaps) > timedelta(seconds=0.5)


@pytest.mark.slow
def test_a_frozen_leader_does_no_harm(
    environment: dict[str, str], runtime: Runtime, tmp_path: Path, database_url: str
) -> None:
    """A leader that is stopped for longer than its term finds out before it fires or sweeps again."""
    with beat(environment, tmp_path / "one.log") as one, beat(environment, tmp_path / "two.log") as two:
        eventually("one leads", lambda: leader_pid(runtime) in {one.pid, two.pid})
        leader, standby = (one, two) if leader_pid(runtime) == one.pid else (two, one)
        eventually("the schedule fires", lambda: len(ticks(runtime)) >= 2)
        freeze(leader, database_url)
        eventually("the standby leads", lambda: leader_pid(runtime) == standby.pid, LEADER_TTL + 8)
        before = len(ticks(runtime))
        leader.send_signal(signal.SIGCONT)
        eventually("the schedule goes on", lambda: len(ticks(runtime)) >= before + 3)
        assert leader_pid(runtime) == standby.pid
        assert leader.poll() is None

    fired = sorted(job.created_at for job in ticks(runtime))
    gaps = [later - earlier for earlier, later in itertools.pairwise(fired)]
    assert min(gaps) > timedelta(seconds=0.5)


@pytest.mark.slow
def test_the_schedule_outlives_every_beat_process(
    environment: dict[str, str], runtime: Runtime, tmp_path: Path, embedded_redis_url: str
) -> None:
    """After all have ended, others go on: what came due meanwhile fires once, whatever its kind; the rest does not."""
    client = runtime.publisher._client  # type: ignore[attr-defined]
    with beat(environment, tmp_path / "one.log") as one:
        eventually("the schedule fires", lambda: len(ticks(runtime)) >= 2)
        one.terminate()
        assert one.wait(15) == 0
    began = runtime.firings.load()
    assert set(began) == {"tick", "hourly", "new year", "sunrise", "plain"}
    assert [name for name, firing in began.items() if firing.task_id is not None] == ["tick"]
    client.flushall()
    two_years = timedelta(days=730)
    term = runtime.leadership.campaign("test", ttl=timedelta(seconds=30))
    for name in ("hourly", "new year", "sunrise", "plain"):
        runtime.firings.fire(name, began[name].fired_at - two_years, "old", epoch=term.epoch)
        runtime.firings.sent(name, "old")
    runtime.leadership.resign("test", term.epoch)

    def rare() -> list[str]:
        jobs = [job for job in runtime.jobs.list_jobs(JobFilter(limit=500)) if job.task == "beat_test.rare"]
        return sorted(str((runtime.jobs.get_payload(job.id) or {})["args"][0]) for job in jobs)

    def is_noted() -> bool:
        """Whoever is killed between sending and noting it leaves a plain task to be sent again."""
        firings = runtime.firings.load()
        return all(firings[name].is_sent for name in ("hourly", "new year", "sunrise", "plain"))

    with beat(environment, tmp_path / "two.log") as two, beat(environment, tmp_path / "three.log") as three:
        eventually("what was missed fires", lambda: len(rare()) >= 3 and is_noted(), 30)
        leader, standby = (two, three) if leader_pid(runtime) == two.pid else (three, two)
        leader.kill()
        eventually("the standby leads", lambda: leader_pid(runtime) == standby.pid, LEADER_TTL + 8)
        before = len(ticks(runtime))
        eventually("the standby fires", lambda: len(ticks(runtime)) >= before + 2)

    assert rare() == ["cron", "hourly", "solar"]
    assert client.xlen("stream:orchestrator:default") == 1
    assert {firing.is_sent for name, firing in runtime.firings.load().items() if name != "tick"} == {True}


@pytest.mark.slow
def test_the_leader_publishes_what_a_submit_could_not(
    environment: dict[str, str], runtime: Runtime, tmp_path: Path, embedded_redis_url: str
) -> None:
    """A flushed Redis has every waiting job's entry again within seconds."""
    client = runtime.publisher._client  # type: ignore[attr-defined]
    (job,) = SubmitService(runtime).submit([CommandRequest(argv=("true",))])
    client.flushall()
    with beat(environment, tmp_path / "one.log") as process:
        stream = "stream:orchestrator:inference_jobs"
        eventually("the entry is back", lambda: any(job.id in str(item) for item in client.xrange(stream)), 25)
        assert process.poll() is None
