"""The self-test that ends a quarantine, on a real GPU."""

from pathlib import Path

import pytest

from orchestrator.domain.cluster import GpuHealth, GpuSample, GpuStanding
from orchestrator.gpus.self_test import Verdict
from orchestrator.guardian.client import GuardianSettings
from orchestrator.guardian.messages import GpuTested
from tests.gpu.conftest import CLEAN_MIB, HERE, RealHost, read_gpus
from tests.support.guardian import Host
from tests.support.waiting import wait_for

pytestmark = pytest.mark.gpu


def test_a_working_gpu_passes_and_nothing_is_left_on_it(gpu: GpuSample, tmp_path: Path) -> None:
    """One that is not there fails: CUDA does not open it."""
    host = Host(GuardianSettings("node-a", tmp_path))
    try:
        host.guardian.self_test(gpu.gpu.uuid)
        assert host.expect(GpuTested, seconds=60) == GpuTested(gpu.gpu.uuid, Verdict.PASSED, "")
        (after, *_) = read_gpus()
        assert (after.processes, after.used_mib < CLEAN_MIB) == ((), True)
        host.guardian.self_test("GPU-00000000-0000-0000-0000-000000000000")
        told = host.expect(GpuTested, seconds=60)
        assert (told.verdict, told.reason) == (Verdict.FAILED, "cuInit: CUDA error 100")
    finally:
        host.close()


def test_a_quarantine_ends_with_a_self_test(host: RealHost) -> None:
    """The process that tests is nobody's use of the GPU."""
    host.worker.stop()
    (first, *_) = host.gpus
    struck = {first.gpu.uuid: GpuStanding(GpuHealth.QUARANTINED, 1, "XID 79")}
    host.cluster.runtime.cluster.note_gpu_standings("real", struck)
    host.cluster.worker("real", gpus=None, app="cuda_app", path=HERE, gpu_quarantine=2)

    wait_for(lambda: host.gpus[0].health is GpuHealth.HEALTHY, within_seconds=60, describe=host.cluster.logs)

    events = host.cluster.runtime.events.page(after=0, upto=None, job_seq=None, tenant=None, limit=1000)
    assert [event.kind for event in events].count("gpu_healthy") == 1
    logs = host.cluster.logs()
    assert "was not tested" not in logs
    assert "used without a lease" not in logs
    host.wait_until_clean()
