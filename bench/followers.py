"""What followers cost everybody else: ``make bench-followers``.

One api process on MariaDB with durable commits. A client submits jobs one by one, first alone, then while 1,000 streams
of waiting jobs are open and 50 clients poll a job each once a second. Compares the latencies of the submits, which must
stay within three times the quiet ones at the 99th percentile, and the memory of the process. At last, for information,
the streams follow everything, so that each submit is told to all of them. Writes ``bench/results/followers.json``.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCES = [str(ROOT), *(str(ROOT / name) for name in ("tasks", "beat", "cli"))]
sys.path[:0] = SOURCES

import httpx  # noqa: E402

from orchestrator.bootstrap import open_runtime  # noqa: E402
from orchestrator.config import Settings  # noqa: E402
from orchestrator.domain.access import Role  # noqa: E402
from orchestrator.services.tokens import MOST_REQUESTS, TokenService  # noqa: E402
from orchestrator.storage.schema import upgrade  # noqa: E402
from tests.support.servers import MariaDBServer, RedisServer, free_port  # noqa: E402
from tests.support.waiting import wait_for  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "followers.json"
FOLLOWERS = 1000
JOBS = 100  # that these follow
POLLERS = 50
SUBMITS = 500
PAUSE = 0.02  # between two submits
WORST_RATIO = 3.0
MOST_MIB = 256.0
LIMIT_SECONDS = 120.0


@contextlib.contextmanager
def serving(home: Path, mariadb: MariaDBServer, redis: RedisServer) -> Iterator[tuple[int, int, str]]:
    """Serve the API; give its port, its process id, and an administrator's token."""
    url, port = mariadb.url(mariadb.create_database()), free_port()
    upgrade(url)
    variables = {
        "PYTHONPATH": os.pathsep.join(SOURCES),
        "ORCHESTRATOR_HOME": str(home),
        "ORCHESTRATOR_DATABASE_URL": url,
        "ORCHESTRATOR_REDIS_URL": redis.url,
    }
    command = [sys.executable, "-m", "orchestrator_cli", "api", "--port", str(port)]
    with (home / "api.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(port), within_seconds=60, describe=(home / "api.log").read_text)
        yield port, process.pid, _token(Settings(home=home, database_url=url, redis_url=redis.url))
    finally:
        process.terminate()
        process.wait(20)


def _token(settings: Settings) -> str:
    """Return an issued token, which streams look at again, unlike the installation's own."""
    runtime = open_runtime(settings)
    try:
        service = TokenService(runtime.access, runtime.clock)
        return service.create("bench", role=Role.ADMIN, requests_per_minute=MOST_REQUESTS, by="bench")[1]
    finally:
        runtime.close()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def memory_mib(pid: int) -> float:
    """Return what a process holds in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def submits(client: httpx.AsyncClient, count: int) -> list[float]:
    """Submit jobs one by one; return the milliseconds that each took."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        (await client.post("/jobs/submit", json={"argv": ["true"]})).raise_for_status()
        took.append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(PAUSE)
    return took


@contextlib.asynccontextmanager
async def following(port: int, token: str, paths: Sequence[str], *, until: bytes) -> AsyncIterator[list[int]]:
    """Open a stream of each path; when each has told something, give how many bytes came on each."""
    came = [0] * len(paths)
    begun = [asyncio.Event() for _ in paths]

    async def follow(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            lines = f"GET {paths[number]} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream"
            writer.write("\r\n".join([*lines, f"Authorization: Bearer {token}", "", ""]).encode())
            while part := await reader.read(65_536):
                came[number] += len(part)
                if until in part:
                    begun[number].set()
        finally:
            writer.close()

    tasks = []
    try:
        for number in range(len(paths)):
            tasks.append(asyncio.create_task(follow(number)))
            if number % 50 == 49:
                await asyncio.wait_for(begun[number].wait(), LIMIT_SECONDS)  # come one after another, as people do
        await asyncio.wait_for(asyncio.gather(*(one.wait() for one in begun)), LIMIT_SECONDS)
        yield came
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def polling(client: httpx.AsyncClient, jobs: Sequence[str]) -> AsyncIterator[list[float]]:
    """Have clients look at a job each once a second; give the milliseconds that each look took."""
    took: list[float] = []

    async def poll(number: int) -> None:
        await asyncio.sleep(number / POLLERS)
        while True:
            began = time.perf_counter()
            (await client.get(f"/jobs/{jobs[number % len(jobs)]}")).raise_for_status()
            took.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(poll(number)) for number in range(POLLERS)]
    try:
        yield took
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def told(took: Sequence[float]) -> dict[str, float]:
    """Return percentiles."""
    cuts = statistics.quantiles(took, n=100)
    return {name: round(cuts[place], 2) for name, place in (("p50", 49), ("p95", 94), ("p99", 98))}


async def measure(port: int, pid: int, token: str, count: int) -> dict[str, Any]:
    """Return all figures."""
    limits = httpx.Limits(max_connections=POLLERS + 10, max_keepalive_connections=POLLERS + 10)
    url, authorized = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=authorized, timeout=60, limits=limits) as client:
        await submits(client, 50)  # warm
        body = [{"argv": ["true"]} for _ in range(JOBS)]
        jobs = [job["id"] for job in (await client.post("/jobs/submit", json=body)).json()]
        (await client.post("/jobs/orders", json={"order": "hold", "ids": jobs})).raise_for_status()
        before, quiet = memory_mib(pid), await submits(client, count)
        paths = [f"/jobs/{jobs[number % JOBS]}/stream" for number in range(FOLLOWERS)]
        async with following(port, token, paths, until=b'"hold"') as came, polling(client, jobs) as polls:
            busy, during = await submits(client, count), memory_mib(pid)
            followed = sum(one > 0 for one in came)
        async with following(port, token, ["/events"] * FOLLOWERS, until=b"retry") as came:
            begun = sum(came)
            told_all, after = await submits(client, count // 5), memory_mib(pid)
            sent = sum(came) - begun
    return {
        "submit_ms": {"quiet": told(quiet), "followed": told(busy), "all_told": told(told_all)},
        "poll_ms": told(polls),
        "polls": len(polls),
        "streams": followed,
        "p99_ratio": round(told(busy)["p99"] / told(quiet)["p99"], 2),
        "memory_mib": {"before": round(before, 1), "followed": round(during, 1), "all_told": round(after, 1)},
        "bytes_told_to_all": sent,
    }


def main() -> int:
    """Measure, write the figures, and say whether they are within bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submits", type=int, default=SUBMITS)
    count = parser.parse_args().submits
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        mariadb, redis = stack.enter_context(MariaDBServer()), stack.enter_context(RedisServer())
        port, pid, token = stack.enter_context(serving(Path(name), mariadb, redis))
        figures = asyncio.run(measure(port, pid, token, count))
    figures = {"cores": os.cpu_count(), "python": platform.python_version(), "submits": count, **figures}
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    grown = figures["memory_mib"]["followed"] - figures["memory_mib"]["before"]
    good = figures["p99_ratio"] <= WORST_RATIO and grown <= MOST_MIB and figures["streams"] == FOLLOWERS
    print("within bounds" if good else "OUT OF BOUNDS", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
