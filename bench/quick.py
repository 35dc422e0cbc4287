"""The way of a job against stock Celery, alternating in one run: ``make bench-quick``.

Ours: no-op GPU tasks through MariaDB with durable commits, leases, history and Redis results, two runners on two
simulated GPUs. Stock: Celery 5.7 on Redis, ``acks_late``, Redis results, prefork ``-c 2``, nothing persisted. Both
workers are warm. Each side is measured by counting finished jobs. Writes ``bench/results/quick.json`` and the table in
docs/performance.md.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("tasks", "beat", "cli"))]

from sqlalchemy import create_engine, text  # noqa: E402

from orchestrator.bootstrap import open_runtime  # noqa: E402
from orchestrator.config import load_settings  # noqa: E402
from orchestrator.domain.request import TaskRequest  # noqa: E402
from orchestrator.gpus.simulated import make_gpus, write_gpus  # noqa: E402
from orchestrator.services.submit import SubmitService  # noqa: E402
from orchestrator.storage.schema import upgrade  # noqa: E402
from tests.support.servers import MariaDBServer, RedisServer  # noqa: E402
from tests.support.waiting import wait_for  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "quick.json"
PAGE = ROOT / "docs" / "performance.md"
GPUS = 2
#: Jobs in one submit; the worker begins with the first ones while the rest is submitted, as stock Celery's does.
CHUNK = 500


class Ours:
    """One worker of ours on MariaDB and Redis."""

    def __init__(self, mariadb: MariaDBServer, redis: RedisServer, home: Path) -> None:
        self.url = mariadb.url(mariadb.create_database())
        upgrade(self.url)
        write_gpus(home / "gpus.toml", make_gpus(GPUS, owner=str(home)))
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path[:4]),
            "ORCHESTRATOR_HOME": str(home),
            "ORCHESTRATOR_DATABASE_URL": self.url,
            "ORCHESTRATOR_REDIS_URL": f"redis://127.0.0.1:{redis.port}/0",
            "ORCHESTRATOR_NODE": "bench",
            "ORCHESTRATOR_SIMULATED_GPUS": str(home / "gpus.toml"),
        }
        os.environ.update({k: v for k, v in self.environment.items() if k.startswith("ORCHESTRATOR_")})
        self.runtime = open_runtime(load_settings())
        self.service = SubmitService(self.runtime)
        self.engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        self.client = redis.client()
        self._expected = 0

    def argv(self) -> list[str]:
        """Return the worker's command."""
        return [
            *_celery(),
            "-A",
            "orchestrator_tasks.app",
            "worker",
            "-Q",
            "gpu",
            "-c",
            "2",
            "-l",
            "WARNING",
            "-n",
            "bench@h",
        ]

    def ready(self) -> bool:
        """The worker has registered its GPUs."""
        return any(node.live and len(node.gpus) == GPUS for node in self.runtime.cluster.nodes())

    def submit(self, jobs: int) -> float:
        """Submit and return the seconds it took."""
        began = time.perf_counter()
        for first in range(0, jobs, CHUNK):
            self.service.submit([TaskRequest(task="examples.noop", gpus=1) for _ in range(min(CHUNK, jobs - first))])
        return time.perf_counter() - began

    def count(self) -> int:
        """Count stored results, which are written after the finish is committed, as the other side's are counted."""
        if self.client.dbsize() < self._expected:
            return 0
        return sum(1 for _ in self.client.scan_iter("celery-task-meta-*", count=10_000))

    def round(self, jobs: int) -> dict[str, float]:
        """Submit a batch and wait for its last job; the database must agree that all have succeeded."""
        self._forget_results()
        self._expected = jobs
        statements = self._status()
        began = time.perf_counter()
        submit_seconds = self.submit(jobs)
        wait_for(lambda: self.count() >= jobs, within_seconds=60, describe="jobs to finish")
        seconds = time.perf_counter() - began
        assert self._succeeded(jobs) == jobs
        used = {name: value - statements[name] for name, value in self._status().items()}
        return {
            "end_to_end": jobs / seconds,
            "drain": jobs / (seconds - submit_seconds),
            "submit": jobs / submit_seconds,
            "statements_per_job": used["Questions"] / jobs,
            "commits_per_job": used["Com_commit"] / jobs,
        }

    def _forget_results(self) -> None:
        keys = list(self.client.scan_iter("celery-task-meta-*", count=10_000))
        if keys:
            self.client.delete(*keys)

    def _succeeded(self, newest: int) -> int:
        with self.engine.connect() as connection:
            query = text(
                "SELECT COUNT(*) FROM (SELECT state FROM orchestrator_jobs ORDER BY seq DESC LIMIT :newest) jobs"
                " WHERE state = 'succeeded'"
            )
            return int(connection.execute(query, {"newest": newest}).scalar_one())

    def latencies(self, jobs: int) -> list[float]:
        """Submit one at a time; return seconds from before the submit until the database shows its end."""
        found = []
        for _ in range(jobs):
            began = time.perf_counter()
            (job,) = self.service.submit([TaskRequest(task="examples.noop", gpus=1)])
            wait_until_ended(self.engine, job.seq)
            found.append(time.perf_counter() - began)
        return found

    def gaps(self) -> list[float]:
        """Return the seconds between one job's end and the next one's start, by lease, of the latest jobs."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT lease_id, started_at, ended_at FROM orchestrator_attempts ORDER BY job_seq DESC LIMIT 2000"
                )
            ).all()
        found, previous = [], {}
        for lease, started, ended in sorted(rows, key=lambda row: row[1]):
            if lease in previous:
                found.append(max(0.0, (started - previous[lease]).total_seconds()))
            previous[lease] = ended
        return found

    def _status(self) -> dict[str, int]:
        query = text("SHOW GLOBAL STATUS WHERE Variable_name IN ('Questions', 'Com_commit')")
        with self.engine.connect() as connection:
            return {name: int(value) for name, value in connection.execute(query)}


def wait_until_ended(engine: Any, seq: int) -> None:
    """Poll one row by its key; the pause is far below what is measured."""
    with engine.connect() as connection:
        query = text("SELECT finished_at FROM orchestrator_jobs WHERE seq = :seq")
        deadline = time.perf_counter() + 30
        while connection.execute(query, {"seq": seq}).scalar() is None:
            assert time.perf_counter() < deadline, f"job {seq} does not end"
            time.sleep(0.0005)


class Stock:
    """One stock Celery worker on Redis."""

    def __init__(self, redis: RedisServer) -> None:
        url = f"redis://127.0.0.1:{redis.port}/1"
        os.environ["BENCH_REDIS_URL"] = url
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:4])}
        self.client = redis.client()
        self.client.select(1)
        from bench.stock_app import app, noop

        self.app, self.noop = app, noop
        self._expected = 0

    def argv(self) -> list[str]:
        """Return the worker's command."""
        return [*_celery(), "-A", "bench.stock_app", "worker", "-c", "2", "-l", "WARNING", "-n", "stock@h"]

    def ready(self) -> bool:
        """The worker answers."""
        return bool(self.app.control.ping(timeout=0.5))

    def submit(self, jobs: int) -> float:
        """Publish and return the seconds it took; one open producer, no result subscription, as fast as it goes."""
        began = time.perf_counter()
        with self.app.producer_or_acquire() as producer:
            for _ in range(jobs):
                self.app.send_task("stock.noop", producer=producer, ignore_result=None)
        return time.perf_counter() - began

    def count(self) -> int:
        """Count stored results: at first by the database's size, which costs nothing, at the end by their keys."""
        if self.client.dbsize() < self._expected:
            return 0
        return sum(1 for _ in self.client.scan_iter("celery-task-meta-*", count=10_000))

    def round(self, jobs: int) -> dict[str, float]:
        """Publish a batch and wait for its last result."""
        self.client.flushdb()
        wait_for(self.ready, within_seconds=30, describe="stock worker")
        self._expected = jobs
        began = time.perf_counter()
        submit_seconds = self.submit(jobs)
        wait_for(lambda: self.count() >= jobs, within_seconds=60, describe="tasks to finish")
        seconds = time.perf_counter() - began
        return {"end_to_end": jobs / seconds, "submit": jobs / submit_seconds}


def _celery() -> list[str]:
    return [sys.executable, "-m", "celery"]


@contextlib.contextmanager
def worker(side: Ours | Stock, log: Path) -> Iterator[None]:
    """Run a side's worker."""
    with log.open("ab") as output:
        process = subprocess.Popen(side.argv(), env=side.environment, cwd=ROOT, stdout=output, stderr=output)
    try:
        wait_for(side.ready, within_seconds=60, describe=lambda: f"worker: {log.read_text()[-2000:]}")
        yield
    finally:
        process.terminate()
        process.wait(60)


def measure(jobs: int, rounds: int) -> dict[str, Any]:
    """Return every figure of one run."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, MariaDBServer() as mariadb, RedisServer() as redis:
        home = Path(directory)
        ours, stock = Ours(mariadb, redis, home), Stock(redis)
        figures: dict[str, list[dict[str, float]]] = {"ours": [], "stock": []}
        for number in range(rounds):
            with worker(stock, home / "stock.log"):
                stock.round(200)
                figures["stock"].append(stock.round(jobs))
            with worker(ours, home / "ours.log"):
                ours.round(200)
                figures["ours"].append(ours.round(jobs))
                if number == rounds - 1:
                    gaps, latencies = ours.gaps(), ours.latencies(200)
            print(f"round {number + 1}: stock {figures['stock'][-1]}, ours {figures['ours'][-1]}", flush=True)
        ours.runtime.close()
    return summary(figures, gaps, latencies, jobs)


def summary(
    figures: dict[str, list[dict[str, float]]], gaps: Sequence[float], latencies: Sequence[float], jobs: int
) -> dict[str, Any]:
    """Return medians, ratios and percentiles."""
    medians = {
        side: {name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]}
        for side, rounds in figures.items()
    }
    ratios = [
        mine["end_to_end"] / theirs["end_to_end"]
        for mine, theirs in zip(figures["ours"], figures["stock"], strict=True)
    ]
    drains = [
        mine["drain"] / theirs["end_to_end"] for mine, theirs in zip(figures["ours"], figures["stock"], strict=True)
    ]
    return {
        "jobs": jobs,
        "rounds": len(ratios),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "ratios": {
            "end_to_end_vs_celery": round(statistics.median(ratios), 2),
            "drain_vs_celery": round(statistics.median(drains), 2),
        },
        "medians": medians,
        "latency_ms": percentiles(latencies),
        "gap_ms": percentiles(gaps),
        "all_rounds": figures,
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {name: round(cuts[index] * 1000, 2) for name, index in (("p50", 49), ("p95", 94), ("p99", 98))}


def write_page(figures: dict[str, Any]) -> None:
    """Put the table into docs/performance.md, between its marks."""
    ours, stock = figures["medians"]["ours"], figures["medians"]["stock"]
    rows = [
        ("jobs a second, from the first submit to the last finish", stock["end_to_end"], ours["end_to_end"]),
        ("submits a second, one producer", stock["submit"], ours["submit"]),
    ]
    table = ["| | stock Celery | gpu-orchestrator |", "| --- | --- | --- |"]
    table += [f"| {name} | {theirs:.0f} | {mine:.0f} |" for name, theirs, mine in rows]
    table += [f"| ratio, median of {figures['rounds']} rounds | 1 | **{figures['ratios']['end_to_end_vs_celery']}** |"]
    lines = [
        *table,
        "",
        f"Drain alone: {ours['drain']:.0f} jobs a second. One warm job, submitted alone, from before the"
        f" submit to its end "
        f"in the database: p50 {figures['latency_ms']['p50']} ms, p99 {figures['latency_ms']['p99']} ms. Gap"
        f" between two "
        f"jobs on a GPU: p50 {figures['gap_ms']['p50']} ms, p99 {figures['gap_ms']['p99']} ms. Database statements and "
        f"commits a job: {ours['statements_per_job']:.2f} and {ours['commits_per_job']:.3f}.",
    ]
    block = "<!-- quick -->\n" + "\n".join(lines) + "\n<!-- /quick -->"
    PAGE.write_text(re.sub(r"<!-- quick -->.*<!-- /quick -->", lambda _: block, PAGE.read_text(), flags=re.DOTALL))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = measure(options.jobs, options.rounds)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    write_page(figures)
    print(json.dumps({name: value for name, value in figures.items() if name != "all_rounds"}, indent=2))


if __name__ == "__main__":
    main()
