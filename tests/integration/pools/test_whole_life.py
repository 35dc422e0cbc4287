"""Everything that a team does, through the API's client alone, against MariaDB: nothing is read behind its back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from orchestrator.client import Client, RemoteError
from orchestrator.errors import ApiUnavailable, LeaseLost, NoGpuFree, UnknownJob
from orchestrator.pool_errors import PoolExists, UnknownPool
from tests.integration.pools.conftest import HERE, OFTEN, QUEUES
from tests.support.cluster import Cluster
from tests.support.servers import MariaDBServer, RedisServer, free_port
from tests.support.waiting import wait_for

ENDED = ("succeeded", "failed", "cancelled", "dead_letter")
TOKEN = "whole-life"
Found = TypeVar("Found")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, mariadb_server: MariaDBServer) -> Iterator[Cluster]:
    """A worker with two GPUs and a beat with a schedule, on MariaDB and a Redis of its own."""
    url = mariadb_server.url(mariadb_server.create_database())
    settings = OFTEN | {"lost_delay": 0.1}
    home = tmp_path_factory.mktemp("life")
    with RedisServer() as redis, Cluster(home, url, redis.url, settings=settings) as made:
        made.worker("a", gpus=2, app="pools_app", queues=QUEUES, path=HERE)
        made.spawn("beat", ["celery", "-A", "pools_app", "beat", "-s", str(home / "beat.schedule")], path=HERE)
        yield made


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[Client]:
    """A client with every right."""
    port = free_port()
    process = cluster.spawn("api", ["orchestrator_cli", "api", "--port", str(port)], api_token=TOKEN)
    with Client(f"http://127.0.0.1:{port}", TOKEN, patience_seconds=30) as made:
        wait_for(lambda: _answers(made), within_seconds=60, describe=process.tail)
        yield made


def _answers(client: Client) -> bool:
    try:
        return bool(client.cluster())
    except ApiUnavailable:
        return False


def until(cluster: Cluster, look: Callable[[], Found | None]) -> Found:
    """Return what a look finds, as soon as it finds something."""
    found = wait_for(look, within_seconds=60, describe=cluster.logs)
    assert found is not None
    return found


def ended(cluster: Cluster, client: Client, job_id: str, state: str = "succeeded") -> dict[str, Any]:
    """Wait for the end of a job, which is in this state then."""
    job = until(cluster, lambda: found if (found := client.job(job_id))["state"] in ENDED else None)
    assert job["state"] == state, job
    return job


def test_a_job(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    """Submitted, followed, held, given another priority, cancelled, retried, explained."""
    body = {"argv": ["sh", "-c", "echo out $ORCHESTRATOR_ATTEMPT; test -e go"], "cwd": str(tmp_path), "gpus": 1}
    job_id = client.submit(body | {"key": "one"})["id"]
    again = client.submit(body | {"key": "one"})
    assert (again["id"], again["created"]) == (job_id, False)
    failed = ended(cluster, client, job_id, "failed")
    assert (failed["exit_code"], failed["attempts"][0]["outcome"]) == (1, "fail")
    (tmp_path / "go").touch()
    assert client.order_jobs("retry", [job_id])[0]["changed"]
    ended(cluster, client, job_id)
    assert "".join(client.follow(job_id)) == "out 1\nout 2\n"
    kinds = [event["kind"] for event in client.events(job_id)]
    assert (kinds[0], kinds[-1], kinds.count("claim")) == ("submit", "succeed", 2)

    two = [client.submit({"argv": ["sleep", "60"], "gpus": 2})["id"] for _ in range(2)]
    until(cluster, lambda: client.job(two[0])["state"] == "running" or None)
    assert client.order_jobs("hold", [two[1]])[0]["changed"]
    assert client.order_jobs("priority", [two[1]], priority=8)[0]["changed"]
    assert "held" in str(client.why(two[1]))
    assert two[0] in [job["id"] for job in client.jobs(state=["running"])["jobs"]]
    for job in two:
        client.cancel(job)
        ended(cluster, client, job, "cancelled")
    with pytest.raises(RemoteError) as unknown:
        client.job("00000000-0000-0000-0000-000000000000")
    assert unknown.value.kind is UnknownJob


def test_a_lease(cluster: Cluster, client: Client) -> None:
    """Taken, renewed, refused to others, given back; jobs wait for it."""
    with client.lease(gpus=2, name="notebook") as lease:
        assert (lease.node, len(lease.gpus)) == ("a", 2)
        with pytest.raises(RemoteError) as busy:
            client.grant_lease({"gpus": 1})
        assert busy.value.kind is NoGpuFree
        job_id = client.submit({"argv": ["true"], "gpus": 1})["id"]
        assert [one["name"] for one in client.leases()["leases"]] == ["notebook"]
        assert [gpu["holders"][0]["lease"] for gpu in client.gpus()] == [lease.id] * 2
        assert client.job(job_id)["state"] in ("pending", "queued")
    ended(cluster, client, job_id)
    granted = client.grant_lease({"gpus": 1, "ttl_seconds": 5})
    assert client.renew_lease(granted["token"])["state"] == "active"
    assert client.release_lease(granted["token"])["state"] == "released"
    with pytest.raises(RemoteError) as lost:
        client.renew_lease(granted["token"])
    assert lost.value.kind is LeaseLost


def test_a_pool(cluster: Cluster, client: Client) -> None:
    """Started, asked, scaled, swapped, stopped, forgotten."""
    client.start_pool({"name": "chat", "model": "m:1", "task": "p.load", "max": 2})
    pool = until(cluster, lambda: found if (found := client.pool("chat"))["ready"] == 1 else None)
    (runner,) = pool["runners"]
    job_id = client.submit({"task": "p.ask", "model": "chat"})["id"]
    answer = ended(cluster, client, job_id)
    assert (answer["result"]["model"], answer["attempts"][0]["lease"]) == ("m:1", runner["lease"])
    with pytest.raises(RemoteError) as differs:
        client.start_pool({"name": "chat", "model": "other", "task": "p.load"})
    assert differs.value.kind is PoolExists
    client.order_pool("chat", "swap", {"model": "m:2"})
    until(cluster, lambda: [one["model"] for one in client.pool("chat")["runners"]] == ["m:2"] or None)
    client.order_pool("chat", "preload", {"runners": 2})
    until(cluster, lambda: client.pool("chat")["ready"] == 2 or None)
    client.order_pool("chat", "scale", {"max": 1})
    until(cluster, lambda: client.pool("chat")["ready"] == 1 or None)
    client.order_pool("chat", "drain")
    until(cluster, lambda: client.pool("chat")["state"] == "stopped" or None)
    assert client.remove_pool("chat") == {"name": "chat"}
    with pytest.raises(RemoteError) as gone:
        client.pool("chat")
    assert gone.value.kind is UnknownPool


def test_a_schedule(cluster: Cluster, client: Client) -> None:
    """What beat's schedule asks for comes as jobs, again and again."""

    def fired() -> list[dict[str, Any]] | None:
        found = [job for job in client.jobs(state=["succeeded"], limit=100)["jobs"] if job["task"] == "p.tick"]
        return found if len(found) >= 2 else None

    assert {job["result"] for job in until(cluster, fired)} == {"tock"}
    assert client.cluster()["leader"] is not None


def test_a_dead_letter(cluster: Cluster, client: Client) -> None:
    """A job that takes its runner along, three times: shown, tried again, dismissed."""
    job_id = client.submit({"task": "p.die", "gpus": 1})["id"]
    dead = ended(cluster, client, job_id, "dead_letter")
    assert (dead["lost_count"], dead["failure_class"]) == (3, "lost")
    assert [letter["id"] for letter in client.dead_letters()["dead_letters"]] == [job_id]
    assert client.dead_letter(job_id)["failure_class"] == "lost"
    client.retry_dead_letter(job_id)
    ended(cluster, client, job_id, "dead_letter")
    client.purge_dead_letter(job_id)
    assert client.dead_letters()["dead_letters"] == []
