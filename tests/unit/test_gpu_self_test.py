"""The self-test of a GPU, against a library that does what CUDA's would."""

import ctypes
import os
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.gpus.self_test import PATTERNS, Outcome, Verdict, check_gpu

MEMORY_AT = 4096
DEVICE = 3
CONTEXT = 7


class FakeCuda:
    """One GPU with some memory; says which functions were called, and may refuse one or forget a bit."""

    def __init__(self, refuses: str = "", code: int = 0, *, stuck_bit: bool = False) -> None:
        self.refuses, self.code, self.stuck_bit = refuses, code, stuck_bit
        self.memory = b""
        self.called: list[str] = []
        self.open: set[str] = set()

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.called.append(name)
            if name == self.refuses:
                return self.code
            getattr(self, f"_{name}")(*arguments)
            return 0

        return function

    def _cuInit(self, flags: int) -> None:
        assert (flags, os.environ["CUDA_VISIBLE_DEVICES"]) == (0, "GPU-a")

    def _cuDeviceGet(self, device: Any, index: int) -> None:
        assert index == 0
        device._obj.value = DEVICE

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> None:
        assert device.value == DEVICE
        context._obj.value = CONTEXT
        self.open.add("context")

    def _cuCtxSetCurrent(self, context: Any) -> None:
        assert context.value == CONTEXT

    def _cuMemAlloc_v2(self, address: Any, size: Any) -> None:
        self.memory, address._obj.value = bytes(size.value), MEMORY_AT
        self.open.add("memory")

    def _cuMemsetD32_v2(self, address: Any, word: Any, count: Any) -> None:
        assert (address.value, count.value * 4) == (MEMORY_AT, len(self.memory))
        self.memory = int(word.value).to_bytes(4, "little") * count.value
        if self.stuck_bit:
            self.memory = self.memory[:-1] + bytes([self.memory[-1] | 1])

    def _cuMemcpyDtoH_v2(self, found: Any, address: Any, size: Any) -> None:
        assert address.value == MEMORY_AT
        found.raw = self.memory[: size.value]

    def _cuMemFree_v2(self, address: Any) -> None:
        assert address.value == MEMORY_AT
        self.open.remove("memory")

    def _cuDevicePrimaryCtxRelease_v2(self, device: Any) -> None:
        assert device.value == DEVICE
        self.open.remove("context")


FUNCTIONS = (
    *("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuMemAlloc_v2", "cuMemsetD32_v2"),
    *("cuMemcpyDtoH_v2", "cuMemFree_v2", "cuDevicePrimaryCtxRelease_v2"),
)


@pytest.fixture(autouse=True)
def _visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a self-test ends with it; a test of it goes on."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-of-somebody-else")


def check(cuda: FakeCuda) -> Outcome:
    return check_gpu("GPU-a", load=lambda _name: cuda, mib=1)


def test_a_gpu_whose_memory_holds_what_is_written_passes_and_nothing_is_left_on_it() -> None:
    cuda = FakeCuda()
    assert check(cuda) == Outcome(Verdict.PASSED)
    assert (cuda.open, set(cuda.called)) == (set(), set(FUNCTIONS))
    assert PATTERNS[0] ^ PATTERNS[1] == 0xFFFFFFFF, "every bit is once set and once not"


def test_memory_that_forgets_a_bit_fails() -> None:
    found = check(FakeCuda(stuck_bit=True))
    assert found == Outcome(Verdict.FAILED, "its memory does not hold what is written into 1 MiB of it")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_is_refused_fails_and_is_named(function: str) -> None:
    """719: a kernel could not be launched."""
    assert check(FakeCuda(function, 719)) == Outcome(Verdict.FAILED, f"{function}: CUDA error 719")


@pytest.mark.parametrize(("function", "code"), [("cuMemAlloc_v2", 2), ("cuDevicePrimaryCtxRetain", 46)])
def test_a_gpu_that_somebody_uses_is_not_tested(function: str, code: int) -> None:
    """Out of memory, and exclusive to another process: neither says anything of the card."""
    assert check(FakeCuda(function, code)) == Outcome(Verdict.UNTESTED, f"{function}: CUDA error {code}")


def test_without_cudas_library_there_is_no_test() -> None:
    def load(name: str) -> Any:
        return ctypes.CDLL(f"/nowhere/{name}")

    found = check_gpu("GPU-a", load=load)
    assert found.verdict is Verdict.UNTESTED
    assert found.reason.startswith("there is no libcuda.so.1 here: /nowhere/libcuda.so.1")


def test_a_library_without_one_of_the_functions_says_nothing_of_the_gpu() -> None:
    assert check_gpu("GPU-a", load=lambda _name: object()).verdict is Verdict.UNTESTED
