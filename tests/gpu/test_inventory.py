"""What a real driver tells, against what NVIDIA's own tool prints."""

import subprocess

import pytest

from orchestrator.domain.cluster import GpuHealth, GpuSample
from tests.gpu.conftest import RealHost, read_gpus
from tests.gpu.use_cuda import Cuda

pytestmark = pytest.mark.gpu

FIELDS = "uuid,index,name,memory.total,driver_version"


def test_the_inventory_is_what_nvidia_smi_prints(gpu: GpuSample) -> None:
    told = subprocess.run(
        ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"],
        check=True,
        capture_output=True,
        text=True,
    )
    cards = [sample.gpu for sample in read_gpus()]
    assert [
        f"{card.uuid}, {card.index}, {card.model}, {card.memory_mib}, {card.driver_version}" for card in cards
    ] == told.stdout.splitlines()


def test_an_unused_gpu_is_healthy_and_tells_its_temperature_power_and_load(gpu: GpuSample) -> None:
    assert gpu.health is GpuHealth.HEALTHY
    assert gpu.processes == ()
    assert gpu.used_mib < 512  # what the driver keeps for itself is not counted
    assert gpu.temperature_celsius is not None
    assert 10 <= gpu.temperature_celsius < 100
    assert gpu.power_watts is not None
    assert 10 <= gpu.power_watts < 1000
    assert gpu.utilization_percent is not None
    assert gpu.xid is None


def test_the_database_has_the_gpus_and_a_worker_does_not_touch_them(host: RealHost) -> None:
    """Neither the worker, nor its guardian, nor the fork server opens a GPU: they would take its memory for ever."""
    assert [(record.gpu, record.health) for record in host.gpus] == [
        (sample.gpu, GpuHealth.HEALTHY) for sample in read_gpus()
    ]
    assert [sample.processes for sample in read_gpus()] == [()] * len(host.gpus)


def test_the_driver_gives_a_gpu_the_name_that_nvml_gives_it(gpu: GpuSample) -> None:
    assert gpu.gpu.uuid in Cuda().devices()
