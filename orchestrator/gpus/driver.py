"""Choose where GPUs are read: the simulated ones' file, NVML, or nothing on a host without GPUs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from orchestrator.domain.cluster import GpuSample
from orchestrator.gpus.card_choice import every_card, say_nothing
from orchestrator.gpus.nvml import NvmlDriver
from orchestrator.gpus.simulated import SimulatedDriver
from orchestrator.ports import GpuDriver


class NoGpus:
    """The driver of a host without GPUs."""

    def sample(self) -> tuple[GpuSample, ...]:
        """Return nothing."""
        return ()

    def close(self) -> None:
        """Hold nothing, so let go of nothing."""


def open_driver(
    simulated: Path | None,
    *,
    library: Any = pynvml,
    about: Callable[[int | None], None] = say_nothing,
    reads: Callable[[int], bool] = every_card,
) -> GpuDriver:
    """Return the driver for this host; call it in the process that samples, after its last fork.

    Args:
        simulated: File of simulated GPUs; None for real ones.
        library: ``pynvml`` or its double.
        about: Told which card is asked next, by its index; None if it is none alone.
        reads: Whether the card of an index is to be read.

    A host has no GPUs when the NVML library is missing or the driver is not loaded. Any other fault of NVML is
    left to ``sample``, which raises ``GpusUnavailable``: broken GPUs are not the same as none.
    """
    if simulated is not None:
        return SimulatedDriver(simulated, about=about, reads=reads)
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        if error.value in (library.NVML_ERROR_LIBRARY_NOT_FOUND, library.NVML_ERROR_DRIVER_NOT_LOADED):
            return NoGpus()
    else:
        library.nvmlShutdown()
    return NvmlDriver(library, about=about, reads=reads)
