"""Pools that sleep: what their runners free is there for others, and they wake up when somebody needs them."""

import sys

from orchestrator.domain.job import JobState
from orchestrator.domain.pool import PoolState
from orchestrator.scheduling.plan import WaitReason
from orchestrator.scheduling.pools import WAKING
from orchestrator.services.why import explain
from tests.integration.pools.conftest import Pools, serving
from tests.integration.pools.pools_app import CONTEXT_MIB
from tests.support.waiting import wait_for

#: Of the simulated GPU's 81,920 MiB.
SHARE_MIB = 60_000
USED_MIB = 50_000


def reserved_mib(pools: Pools) -> int:
    """Return what of the only GPU is reserved."""
    ((gpu,),) = (node.gpus for node in pools.cluster.runtime.cluster.nodes())
    return gpu.reserved_mib


def test_a_pool_that_sleeps_lends_its_memory_and_wakes_for_a_job_once_it_is_back(pools: Pools) -> None:
    """The model is not loaded again: the same process goes on, under another lease."""
    pools.worker("a", lease_ttl=3, lease_margin=1)
    pools.cluster.beat()
    told = {"cards": str(pools.cluster.home / "a.toml"), "mib": USED_MIB}
    pools.start("chat", task="p.load_on_gpu", arguments=told, gpus=None, gpu_memory_mib=SHARE_MIB)
    (lease,) = serving(pools.wait_for_runners("chat", 1))
    (before,) = pools.cluster.wait_for_end([pools.ask("chat", gpus=None)])

    pools.change("chat", asleep=True)
    standing = pools.wait("chat", lambda seen: seen.pool.state is PoolState.ASLEEP)
    (small,) = serving(standing)
    assert small != lease
    assert reserved_mib(pools) == CONTEXT_MIB <= SHARE_MIB // 10

    done = pools.cluster.home / "done"
    wait = f"while not __import__('os').path.exists({str(done)!r}): __import__('time').sleep(0.05)"
    other = pools.cluster.command(sys.executable, "-c", wait, gpus=None, gpu_memory_mib=SHARE_MIB)
    pools.cluster.wait_for_state(other, JobState.RUNNING)
    asked = pools.ask("chat", gpus=None)
    pools.wait("chat", lambda seen: (seen.pool.state, seen.pool.reason) == (PoolState.STARTING, WAKING))
    assert explain(pools.cluster.runtime, asked)[0].code == WaitReason.MODEL_BUSY
    assert serving(pools.standing("chat")) == [small]

    done.touch()
    (after,) = pools.cluster.wait_for_end([asked])
    assert (after.state, after.result["was_loaded"]) == (JobState.SUCCEEDED, True)
    assert after.result["pid"] == before.result["pid"]
    assert after.result["token"] > small
    wait_for(lambda: reserved_mib(pools) == SHARE_MIB, within_seconds=20, describe=pools.cluster.logs)
    pools.wait("chat", lambda seen: seen.pool.state is PoolState.READY)
