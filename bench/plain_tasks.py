"""Plain no-op Celery tasks over Redis Streams and over stock Redis, drained in turns on one server in one run.

Each round publishes the tasks while no worker listens, starts a worker, and counts finished tasks from the first to the
last (an empty stream proves nothing: acknowledgements are batched). Prints JSON: medians in tasks a second, the
parent's CPU in milliseconds a task, and the median of the rounds' ratios; ``--record`` keeps them in
bench/results/plain_tasks.json and docs/performance.md.

    python -m bench.plain_tasks [--tasks 6000] [--rounds 7] [--record] [--redis-server PATH]
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil
import redis
from celery import Celery

from orchestrator.transport import register

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = ROOT / "bench" / "results" / "plain_tasks.json"
PAGE: Final = ROOT / "docs" / "performance.md"
DEADLINE: Final = 120.0
#: Counted from here: the worker's first tasks run while its processes still start.
WARM_UP: Final = 200


def make_app() -> Celery:
    """Return the app that the environment describes; workers import it from here."""
    register()
    app = Celery("bench")
    app.conf.update(
        broker_url=os.environ["BENCH_BROKER"],
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=int(os.environ.get("BENCH_MULTIPLIER", "4")),
        broker_connection_retry_on_startup=True,
        task_default_queue="bench",
        accept_content=["json"],
    )

    @app.task(name="bench.noop")  # type: ignore[untyped-decorator]
    def noop() -> None:
        """Count, and do nothing else."""
        counter().incr("finished")

    return app


_counter: dict[int, redis.Redis] = {}


def counter() -> redis.Redis:
    """Return this process's client of the database that counts."""
    if os.getpid() not in _counter:
        _counter[os.getpid()] = redis.Redis(unix_socket_path=os.environ["BENCH_SOCKET"], db=1)
    return _counter[os.getpid()]


def measure(broker: str, tasks: int, concurrency: int, multiplier: int) -> tuple[float, float]:
    """Drain so many tasks once; return tasks a second and the parent's CPU milliseconds a task."""
    os.environ |= {"BENCH_BROKER": broker, "BENCH_MULTIPLIER": str(multiplier)}
    counter().delete("finished")
    app = make_app()
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(tasks):
            app.send_task("bench.noop", producer=producer)
    app.close()
    options = ["--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "ERROR"]
    command = [sys.executable, __file__, "worker", "-c", str(concurrency), *options]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        process = psutil.Process(worker.pid)
        await_count(WARM_UP, worker)
        began, cpu_began = time.monotonic(), cpu(process)
        first = int(counter().get("finished") or 0)
        await_count(tasks, worker)
        seconds, used = time.monotonic() - began, cpu(process) - cpu_began
        return (tasks - first) / seconds, used * 1000 / (tasks - first)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(30)


def cpu(process: psutil.Process) -> float:
    """Return the seconds of CPU that one process has used, its children's not counted."""
    times = process.cpu_times()
    return float(times.user + times.system)


def await_count(wanted: int, worker: "subprocess.Popen[bytes]") -> None:
    """Wait until so many tasks have finished."""
    deadline = time.monotonic() + DEADLINE
    while int(counter().get("finished") or 0) < wanted:
        if worker.poll() is not None:
            raise SystemExit(f"the worker ended with {worker.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"fewer than {wanted} tasks finished in {DEADLINE} s")
        time.sleep(0.005)


def bench(arguments: argparse.Namespace, socket: str) -> dict[str, Any]:
    """Alternate the two brokers and return the figures."""
    brokers = {"streams": f"redis-streams://localhost{socket}/0", "stock": f"redis+socket://{socket}?virtual_host=0"}
    rates: dict[str, list[float]] = {name: [] for name in brokers}
    costs: dict[str, list[float]] = {name: [] for name in brokers}
    for number in range(arguments.rounds):
        for name in sorted(brokers, reverse=bool(number % 2)):  # neither is always the first
            rate, cost = measure(brokers[name], arguments.tasks, arguments.concurrency, arguments.multiplier)
            rates[name].append(rate)
            costs[name].append(cost)
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "tasks": arguments.tasks,
        "rounds": arguments.rounds,
        "concurrency": arguments.concurrency,
        "prefetch_multiplier": arguments.multiplier,
        "tasks_per_second": {name: round(value) for name, value in median.items()},
        "range": {name: [round(min(values)), round(max(values))] for name, values in rates.items()},
        "parent_cpu_ms_per_task": {name: round(statistics.median(values), 3) for name, values in costs.items()},
        "ratio": round(statistics.median(a / b for a, b in zip(rates["streams"], rates["stock"], strict=True)), 2),
        "all_rounds": {name: [round(value) for value in values] for name, values in rates.items()},
    }


def record(figures: dict[str, Any]) -> None:
    """Keep the figures, and put the table into docs/performance.md, between its marks."""
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    names = ("stock", "streams")
    rows = [
        ("plain tasks a second, median", [f"{figures['tasks_per_second'][name]}" for name in names]),
        ("slowest and fastest round", [" to ".join(map(str, figures["range"][name])) for name in names]),
        ("CPU of the worker's parent, ms a task", [f"{figures['parent_cpu_ms_per_task'][name]}" for name in names]),
        (f"ratio, median of {figures['rounds']} rounds", ["1", f"**{figures['ratio']}**"]),
    ]
    table = ["| | stock `redis://` | `redis-streams://` |", "| --- | --- | --- |"]
    table += [f"| {title} | {stock} | {ours} |" for title, (stock, ours) in rows]
    block = "<!-- plain -->\n" + "\n".join(table) + "\n<!-- /plain -->"
    PAGE.write_text(re.sub(r"<!-- plain -->.*<!-- /plain -->", lambda _: block, PAGE.read_text(), flags=re.DOTALL))


def main() -> None:
    """Run the bench, or a worker of it."""
    if sys.argv[1:2] == ["worker"]:
        make_app().worker_main(sys.argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--multiplier", type=int, default=4)
    parser.add_argument("--record", action="store_true", help="keep the figures in the repository")
    parser.add_argument("--redis-server", default=shutil.which("redis-server"))
    arguments = parser.parse_args()
    if not arguments.redis_server:
        parser.error("no redis-server on PATH; name one with --redis-server")
    with tempfile.TemporaryDirectory() as home:
        socket = str(Path(home) / "redis.sock")
        os.environ["BENCH_SOCKET"] = socket
        argv = [arguments.redis_server, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", home]
        server = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while not Path(socket).exists():
                if time.monotonic() > deadline:
                    raise SystemExit("redis-server does not start")
                time.sleep(0.02)
            figures = bench(arguments, socket)
            print(json.dumps(figures, indent=2))
            if arguments.record:
                record(figures)
        finally:
            server.terminate()
            server.wait(10)


if __name__ == "__main__":
    main()
