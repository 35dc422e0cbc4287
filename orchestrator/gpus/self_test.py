"""Whether a GPU still does its work: its memory is written and read back, through the library of its driver alone.

Only for a process of its own, that ends afterwards: a context is made, and a card that is broken may hang it.
"""

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from orchestrator.errors import GpusUnavailable
from orchestrator.gpus.simulated import read_self_test

LIBRARY: Final = "libcuda.so.1"
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
MIB: Final = 1 << 20
SIZE_MIB: Final = 64
#: Written as words, one after the other, so that each bit is once set and once not.
PATTERNS: Final = (0x55AA33CC, 0xAA55CC33)
WORD: Final = 4
#: CUDA's out of memory and device unavailable: somebody uses the GPU, which says nothing of how it is.
IN_USE: Final = (2, 46)


class Verdict(StrEnum):
    """What a self-test found."""

    PASSED = "passed"
    FAILED = "failed"
    UNTESTED = "untested"  # it could not be made, for no fault of the GPU


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict, and why if it is not that all is well."""

    verdict: Verdict
    reason: str = ""


class _Refused(Exception):
    """A function of CUDA returned an error."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(function, code)
        self.function, self.code = function, code

    def __str__(self) -> str:
        return f"{self.function}: CUDA error {self.code}"


def check_simulated(path: Path, gpu: str) -> Outcome:
    """Return what the file says of a simulated GPU, or nothing for a long time."""
    try:
        said = read_self_test(path, gpu)
    except GpusUnavailable as error:
        return Outcome(Verdict.UNTESTED, str(error))
    while said == "hangs":
        time.sleep(1)
    return Outcome(Verdict.PASSED) if said == "passes" else Outcome(Verdict.FAILED, "it is simulated to")


def check_gpu(gpu: str, *, load: Callable[[str], Any] = ctypes.CDLL, mib: int = SIZE_MIB) -> Outcome:
    """Write and read back some MiB of a GPU; it alone must be visible to this process.

    Args:
        gpu: Its uuid.
        load: Opens the driver's library; raises OSError where there is none.
        mib: How much.
    """
    os.environ[VISIBLE] = gpu
    try:
        library = load(LIBRARY)
    except OSError as error:
        return Outcome(Verdict.UNTESTED, f"there is no {LIBRARY} here: {error}")
    try:
        return _use(library, mib)
    except AttributeError as error:  # a driver from before the functions that are used
        return Outcome(Verdict.UNTESTED, f"{LIBRARY} is too old: {error}")
    except _Refused as error:
        return Outcome(Verdict.UNTESTED if error.code in IN_USE else Verdict.FAILED, str(error))


def _use(library: Any, mib: int) -> Outcome:
    def call(function: str, *arguments: Any) -> None:
        code = int(getattr(library, function)(*arguments))
        if code:
            raise _Refused(function, code)

    device, context, address = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(mib * MIB))
    found = ctypes.create_string_buffer(mib * MIB)
    for pattern in PATTERNS:
        call("cuMemsetD32_v2", address, ctypes.c_uint(pattern), ctypes.c_size_t(mib * MIB // WORD))
        call("cuMemcpyDtoH_v2", found, address, ctypes.c_size_t(mib * MIB))
        if found.raw != pattern.to_bytes(WORD, "little") * (mib * MIB // WORD):
            return Outcome(Verdict.FAILED, f"its memory does not hold what is written into {mib} MiB of it")
    call("cuMemFree_v2", address)
    call("cuDevicePrimaryCtxRelease_v2", device)
    return Outcome(Verdict.PASSED)
