"""Simulated GPUs for tests and measurements."""

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuSample

MEMORY_MIB = 81_920


def simulated_gpus(count: int, *, prefix: str = "GPU-sim") -> list[GpuSample]:
    """Return healthy, idle GPUs; choose a prefix that no other stack on this machine uses."""
    return [
        GpuSample(
            gpu=Gpu(f"{prefix}-{index}", index, "Simulated H100", MEMORY_MIB, "simulated"),
            used_mib=0,
            health=GpuHealth.HEALTHY,
            processes=(),
            utilization_percent=0,
            temperature_celsius=30,
            power_watts=70,
        )
        for index in range(count)
    ]
