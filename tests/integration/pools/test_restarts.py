"""Pools over restarts: of the worker that has their runners, and of the database that knows of them."""

import signal
from pathlib import Path

import pytest

from orchestrator.client import Client
from orchestrator.domain.job import JobState
from orchestrator.errors import ApiUnavailable
from tests.integration.pools.conftest import Pools, serving
from tests.support.servers import MariaDBServer, free_port
from tests.support.waiting import wait_for

TOKEN = "restarts"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_pinned_pool_has_its_runners_again_after_a_restart_of_its_worker(pools: Pools, signum: int) -> None:
    """F52: as many as before, and they stay: idle for longer than the pool allows, and while others wait for GPUs.

    That the leader has looked at idle runners by then is told by another pool's, which is the same but for the pin.
    """
    worker = pools.worker("a", gpus=3, lease_ttl=3, lease_margin=1)
    pools.cluster.beat()
    pools.start("pinned", least=0, most=2, idle_seconds=1.0, pinned=True)
    pools.change("pinned", wanted=2)
    before = serving(pools.wait_for_runners("pinned", 2))

    worker.stop(signum)
    pools.worker("a", gpus=3, lease_ttl=3, lease_margin=1)
    again = pools.wait("pinned", lambda seen: len(serving(seen)) == 2 and not set(serving(seen)) & set(before))
    assert again.pool.spec.pinned
    pools.start("idle", least=0, most=1, idle_seconds=1.0)
    pools.change("idle", wanted=1)
    pools.wait_for_runners("idle", 1)
    pools.wait_for_runners("idle", 0)
    assert serving(pools.standing("pinned")) == serving(again)

    one, two = (pools.cluster.command("true", gpus=gpus) for gpus in (1, 2))
    assert pools.cluster.wait_for_end([one])[0].state is JobState.SUCCEEDED
    (asked,) = pools.cluster.wait_for_end([pools.ask("pinned")])
    assert asked.result["was_loaded"]
    assert asked.result["token"] in serving(again)
    assert pools.cluster.runtime.jobs.get(two).state in (JobState.PENDING, JobState.QUEUED)  # type: ignore[union-attr]
    assert serving(pools.standing("pinned")) == serving(again)


def test_a_pool_serves_on_after_a_restart_of_the_database(
    mariadb_pools: Pools, mariadb_server: MariaDBServer, tmp_path: Path
) -> None:
    """Killed and started again with its data: the same runner has the model, under the same lease, and is told so."""
    pools = mariadb_pools
    pools.worker("a")
    pools.cluster.beat()
    pools.start("chat", model="m", most=2)
    (lease,) = serving(pools.wait_for_runners("chat", 1))
    (before,) = pools.cluster.wait_for_end([pools.ask("chat")])
    port = free_port()
    api = pools.cluster.spawn("api", ["orchestrator_cli", "api", "--port", str(port)], api_token=TOKEN)
    begun = tmp_path / "begun"
    running = pools.cluster.task("p.ask", 2.0, str(begun), model="chat")
    with Client(f"http://127.0.0.1:{port}", TOKEN, patience_seconds=30) as client:

        def answers() -> bool:
            try:
                return bool(client.pools())
            except ApiUnavailable:
                return False

        wait_for(answers, within_seconds=60, describe=api.tail)
        wait_for(begun.exists, within_seconds=20, describe=pools.cluster.logs)
        mariadb_server.kill()
        mariadb_server.start()
        told = client.pool("chat")
        assert [runner["lease"] for runner in told["runners"]] == [lease]
        (over, after) = pools.cluster.wait_for_end([running, pools.ask("chat")])
        client.order_pool("chat", "scale", {"min": 1, "max": 3})
        assert client.pool("chat")["max"] == 3

    results = [job.result for job in (before, over, after)]
    assert [job.attempt for job in (before, over, after)] == [1, 1, 1]
    assert {(one["pid"], one["token"]) for one in results} == {(before.result["pid"], lease)}
    assert serving(pools.standing("chat")) == [lease]
