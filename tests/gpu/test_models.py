"""Worker pools with a model in a real GPU's memory: measured, put to sleep, woken up. They need torch."""

import pytest

from orchestrator.domain.job import JobState
from orchestrator.domain.pool import Leave, PoolState
from orchestrator.ports import JobFilter
from tests.gpu.conftest import RealHost, read_gpus
from tests.integration.pools.conftest import Pools, serving
from tests.support.waiting import wait_for

pytestmark = pytest.mark.gpu

SHARE_MIB = 10_240
MODEL_MIB = 8_192


@pytest.fixture
def pools(host: RealHost) -> Pools:
    """The host's pools, if tasks can use torch on its GPUs."""
    torch = pytest.importorskip("torch", reason="torch is an extra: pip install 'gpu-orchestrator[torch]'")
    assert torch.version.cuda is not None, "this torch has no CUDA"
    return Pools(host.cluster)


def used_mib() -> int:
    """Return what processes use of the first GPU, as the driver tells it."""
    return sum(process.used_mib for process in read_gpus()[0].processes)


def test_a_pool_on_a_real_gpu_is_measured_sleeps_and_wakes(host: RealHost, pools: Pools) -> None:
    """Asleep it gives at least nine tenths of its share back; awake its process has the same weights again."""
    pools.start("big", task="g.load", arguments={"mib": MODEL_MIB}, gpus=None, gpu_memory_mib=SHARE_MIB)
    (lease,) = serving(pools.wait_for_runners("big", 1, within_seconds=90))
    (load,) = host.cluster.runtime.jobs.list_jobs(JobFilter(name="pool:big"))
    assert MODEL_MIB <= load.result["loaded"]["big"] < MODEL_MIB + 64  # not the tenth that was promised
    (before,) = host.ended(host.cluster.task("g.ask", model="big", gpus=None))
    assert (before.state, before.result["device"], before.result["sum"]) == (JobState.SUCCEEDED, "cuda:0", 1024.0)
    assert used_mib() >= MODEL_MIB

    pools.change("big", asleep=True)
    standing = pools.wait("big", lambda seen: seen.pool.state is PoolState.ASLEEP)
    (small,) = serving(standing)
    assert small > lease
    assert host.gpus[0].reserved_mib <= SHARE_MIB // 10
    assert used_mib() <= SHARE_MIB // 10

    (after,) = host.ended(host.cluster.task("g.ask", model="big", gpus=None))
    assert (after.state, after.result["pid"]) == (JobState.SUCCEEDED, before.result["pid"]), after.error
    assert (after.result["was_loaded"], after.result["sum"]) == (True, 1024.0)
    wait_for(lambda: host.gpus[0].reserved_mib == SHARE_MIB, within_seconds=20, describe=host.cluster.logs)
    assert used_mib() >= MODEL_MIB

    pools.change("big", leave=Leave.NOW)
    pools.wait("big", lambda seen: seen.pool.state is PoolState.STOPPED)
    host.wait_until_clean()
