"""An api that is killed while clients submit."""

import signal
import threading
import time

import httpx
import pytest

from orchestrator.ports import JobFilter
from tests.chaos.support import FaultCluster
from tests.support.cluster import Process
from tests.support.servers import free_port
from tests.support.waiting import wait_for

CLIENTS = 4
BEFORE_THE_KILL = 25
STACKS = ["mariadb", pytest.param("embedded", marks=pytest.mark.matrix)]


class Submitter(threading.Thread):
    """Submits a job after the other, each under a key of its own, and sends one again that was not answered."""

    def __init__(self, url: str, name: str, authorized: dict[str, str]) -> None:
        super().__init__(name=name, daemon=True)
        self._url, self._authorized, self.stopping = url, authorized, threading.Event()
        self.told: dict[str, str] = {}  # key -> the id that was answered
        self.tries = 0

    def run(self) -> None:
        """Submit until stopped; what was begun is brought to its answer."""
        number = 0
        while not self.stopping.is_set():
            key, number = f"{self.name}-{number}", number + 1
            sent = {"headers": self._authorized | {"Idempotency-Key": key}, "json": {"argv": ["true"]}}
            while key not in self.told:
                self.tries += 1
                try:
                    answer = httpx.post(f"{self._url}/jobs/submit", timeout=10, **sent)
                except httpx.TransportError:
                    time.sleep(0.05)
                    continue
                if answer.is_success:
                    self.told[key] = answer.json()["id"]


@pytest.mark.parametrize("stack", STACKS)
def test_a_killed_api_loses_no_acknowledged_submit(cluster: FaultCluster) -> None:
    """Killed between any two steps, twice: what was answered is there, and what was not is there once at most."""
    port = free_port()

    def start() -> Process:
        return cluster.spawn("api", ["orchestrator_cli", "api", "--port", str(port)])

    api = start()
    url = f"http://127.0.0.1:{port}"
    clients = [Submitter(url, f"client{number}", cluster.authorized) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for goal in (BEFORE_THE_KILL, 2 * BEFORE_THE_KILL, 3 * BEFORE_THE_KILL):
        enough = lambda goal=goal: sum(len(client.told) for client in clients) >= goal  # noqa: E731
        wait_for(enough, within_seconds=60, describe=cluster.logs)
        if goal != 3 * BEFORE_THE_KILL:
            api.stop(signal.SIGKILL)
            api = start()
    for client in clients:
        client.stopping.set()
        client.join(60)
        assert not client.is_alive()

    told = {job_id for client in clients for job_id in client.told.values()}
    stored = {job.id for job in cluster.runtime.jobs.list_jobs(JobFilter(limit=10_000))}
    assert stored == told, "each key names one job, also where an answer was lost"
    assert sum(client.tries for client in clients) > len(told), "some submits were not answered"
