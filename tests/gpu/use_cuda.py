"""Use GPUs as a job would, through the driver's own library and nothing else.

python use_cuda.py devices             print the uuids that this process sees, one a line
python use_cuda.py hold MIB:SECONDS …  use so much of the first GPU, step by step, for so long
python use_cuda.py work SECONDS        have the first GPU write its memory over and over
python use_cuda.py fault               run a kernel that writes where nothing is

``using`` is printed when a step's memory is there.
"""

import ctypes
import sys
import time
import uuid
from typing import Any

MIB = 1 << 20
NO_DEVICE = 100
#: Writes a word to address 16.
FAULTY_KERNEL = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry fault()
{
    .reg .b64 %address;
    .reg .b32 %word;
    mov.u64 %address, 16;
    mov.u32 %word, 1;
    st.global.u32 [%address], %word;
    ret;
}
"""


class Cuda:
    """The driver's library with one context on the first GPU."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: Any, allowed: tuple[int, ...] = ()) -> int:
        """Call a function and return its code, which must be 0 or allowed."""
        code: int = getattr(self._library, name)(*arguments)
        if code and code not in allowed:
            raise SystemExit(f"{name}: CUDA error {code}")
        return code

    def devices(self) -> list[str]:
        """Return the uuids of the GPUs that this process sees, as NVML spells them."""
        count = ctypes.c_int()
        if self.call("cuInit", 0, allowed=(NO_DEVICE,)):
            return []
        self.call("cuDeviceGetCount", ctypes.byref(count))
        found = []
        for index in range(count.value):
            identity = (ctypes.c_ubyte * 16)()
            self.call("cuDeviceGetUuid_v2", ctypes.byref(identity), index)
            found.append(f"GPU-{uuid.UUID(bytes=bytes(identity))}")
        return found

    def open(self) -> None:
        """Make a context on the first GPU."""
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def allocate(self, mib: int) -> ctypes.c_uint64:
        """Take so much of the GPU's memory."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(mib * MIB))
        return address

    def write(self, address: ctypes.c_uint64, mib: int) -> None:
        """Have the GPU write all of it, and wait for that."""
        self.call("cuMemsetD8_v2", address, ctypes.c_ubyte(1), ctypes.c_size_t(mib * MIB))
        self.call("cuCtxSynchronize")

    def fault(self) -> None:
        """Run the faulty kernel; the driver ends this context for it."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), FAULTY_KERNEL)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, b"fault")
        self.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
        self.call("cuCtxSynchronize")


def main(verb: str, *words: str) -> None:
    """Do what the command line says."""
    cuda = Cuda()
    if verb == "devices":
        print("\n".join(cuda.devices()))
        return
    cuda.open()
    if verb == "hold":
        held = 0
        for word in words:
            mib, seconds = word.split(":")
            cuda.allocate(int(mib) - held)  # steps only grow
            held = int(mib)
            print("using", flush=True)
            time.sleep(float(seconds))
    elif verb == "work":
        address = cuda.allocate(1024)
        print("using", flush=True)
        until = time.monotonic() + float(words[0])
        while time.monotonic() < until:
            cuda.write(address, 1024)
    elif verb == "fault":
        cuda.fault()
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
