"""What a worker pool costs a job, and what it saves: ``make bench-pools``.

One worker with a simulated GPU. Jobs that do nothing are submitted one by one; of each, the time from its receipt by
the worker (Celery's own signal ``task_received``) to the first line of the task is taken: through the runner of a pool,
and cold, when a runner has to be started for it. In between lie the claim, committed durably (or, as the submit has
granted the job to the idle runner, the question whether that stands), and the way to the runner. Then many jobs at
once, so that the runner is never without the next one: of these, the time between the last line of a job and the first
line of the next. On MariaDB, which commits to disk, and on the embedded SQLite. Writes ``bench/results/pools.json``.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("tasks", "beat", "cli"))]

from bench.pools_app import RECEIPTS  # noqa: E402
from orchestrator.domain.job import TERMINAL_STATES, JobState  # noqa: E402
from orchestrator.domain.pool import PoolRequest  # noqa: E402
from orchestrator.domain.request import TaskRequest  # noqa: E402
from orchestrator.services.pools import PoolService  # noqa: E402
from tests.support.cluster import Cluster  # noqa: E402
from tests.support.servers import MariaDBServer, RedisServer  # noqa: E402
from tests.support.waiting import wait_for  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "pools.json"
WARM_JOBS = 400
COLD_JOBS = 15
BUSY_JOBS = 1500
BOUND_MS = 2.0
LIMIT_SECONDS = 30.0


def run_one(cluster: Cluster, receipts: Path, **options: Any) -> float:
    """Run a job and return the milliseconds from its receipt to its first line."""
    (job_id,) = cluster.submit(TaskRequest(task="bench.enter", gpus=1, **options))
    limit = time.monotonic() + LIMIT_SECONDS
    while (job := cluster.job(job_id)).state not in TERMINAL_STATES:
        if time.monotonic() > limit:
            raise TimeoutError(f"job {job_id} is {job.state}\n{cluster.logs()}")
        time.sleep(0.02)  # not so often that asking delays the job
    if job.state is not JobState.SUCCEEDED:
        raise RuntimeError(job.error)
    received = next(line for line in receipts.read_text().splitlines() if line.startswith(job_id)).split()[1]
    return 1000 * (float(job.result[0]) - float(received))


def measure(cluster: Cluster, *, warm: int, cold: int) -> dict[str, Any]:
    """Return the milliseconds of jobs through a pool, and of cold ones."""
    receipts = cluster.home / "receipts"
    os.environ[RECEIPTS] = str(receipts)
    cluster.worker("bench", gpus=1, app="bench.pools_app", queues="gpu,preloads")
    cluster.beat()
    # A tenant's runner serves no other tenant, so each of these has to be started.
    cold_ms = [run_one(cluster, receipts, tenant=f"cold-{number}") for number in range(cold + 1)][1:]
    PoolService(cluster.runtime).start(PoolRequest(name="noop", task="bench.load", gpus=1), by="bench")
    wait_for(
        lambda: any(runner.ended_at is None for runner in cluster.runtime.pools.standing("noop").runners),
        within_seconds=LIMIT_SECONDS,
        describe=cluster.logs,
    )
    for _ in range(20):
        run_one(cluster, receipts, model="noop")
    warm_ms = [run_one(cluster, receipts, model="noop") for _ in range(warm)]
    found = {"cold": cold_ms, "warm": warm_ms, "busy_gap": run_many(cluster, BUSY_JOBS)}
    return {name: summary(samples) for name, samples in found.items()}


def run_many(cluster: Cluster, count: int) -> list[float]:
    """Run jobs as fast as the pool's runner takes them and return the milliseconds between each and the next."""
    request = TaskRequest(task="bench.enter", gpus=1, model="noop")
    ids = [job_id for _ in range(0, count, 100) for job_id in cluster.submit(*[request] * 100)]
    ended = cluster.wait_for_end(ids, within_seconds=LIMIT_SECONDS * 4)
    spans = sorted(tuple(job.result) for job in ended)
    return [1000 * (later[0] - earlier[1]) for earlier, later in itertools.pairwise(spans)]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return median and tail."""
    ordered = sorted(samples)
    return {
        "jobs": len(ordered),
        "median_ms": round(statistics.median(ordered), 3),
        "p90_ms": round(ordered[int(0.9 * (len(ordered) - 1))], 3),
        "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 3),
    }


def main() -> int:
    """Measure, print, record; fail if the bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=WARM_JOBS)
    parser.add_argument("--no-record", action="store_true", help="leave the recorded result alone")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        redis, mariadb = stack.enter_context(RedisServer()), stack.enter_context(MariaDBServer())
        urls: dict[str, Callable[[Path], str]] = {
            "mariadb": lambda _: mariadb.url(mariadb.create_database()),
            "sqlite": lambda home: f"sqlite:///{home / 'bench.db'}",
        }
        for name, url in urls.items():
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            redis.clear()
            with Cluster(home, url(home), redis.url) as cluster:
                found[name] = measure(cluster, warm=options.jobs, cold=COLD_JOBS)
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    kept = found["mariadb"]["warm"]["median_ms"] < BOUND_MS
    found |= {
        "bound_ms": BOUND_MS,
        "cold_to_warm": round(found["mariadb"]["cold"]["median_ms"] / found["mariadb"]["warm"]["median_ms"], 1),
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
    }
    if not options.no_record:
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(f"median of a warm job: {found['mariadb']['warm']['median_ms']} ms (bound {BOUND_MS} ms)")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
