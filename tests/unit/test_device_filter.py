"""The filter of devices, run as the kernel would run it."""

import errno
import struct
from collections.abc import Collection
from pathlib import Path

import pytest

from orchestrator.guardian import device_filter

BLOCK, CHARACTER = 1, 2
#: The other half of the field that holds the kind: make, read and write.
EVERY_ACCESS = 7 << 16


def answer(program: bytes, kind: int, major: int, minor: int) -> int:
    """Run a program on a question of the kernel, with the instructions as BPF defines them."""
    question = struct.pack("=III", EVERY_ACCESS | kind, major, minor)
    instructions = list(struct.iter_unpack("<BBhi", program))
    registers: dict[int, int] = {}
    at = 0
    for _step in range(len(instructions)):  # it only jumps forward
        code, both, offset, constant = instructions[at]
        target, source = both & 0xF, both >> 4
        at += 1
        match code:
            case 0x61:  # BPF_LDX | BPF_MEM | BPF_W
                assert source == 1, "the question is in the first register"
                (registers[target],) = struct.unpack_from("=I", question, offset)
            case 0x54:  # BPF_ALU | BPF_AND | BPF_K
                registers[target] &= constant
            case 0x55 | 0x15:  # BPF_JMP | BPF_JNE | BPF_K and BPF_JMP | BPF_JEQ | BPF_K
                at += offset if (registers[target] == constant) == (code == 0x15) else 0
            case 0xB7:  # BPF_ALU64 | BPF_MOV | BPF_K
                registers[target] = constant
            case 0x95:  # BPF_JMP | BPF_EXIT
                return registers[0]
            case _:
                raise AssertionError(f"{code:#x} is no instruction of a filter")
    raise AssertionError("it does not end")


@pytest.mark.parametrize("minors", [[0], [3, 1, 3], range(1, 17)])
def test_the_devices_named_are_denied_and_no_others(minors: Collection[int]) -> None:
    program = device_filter.assemble(195, minors)
    for minor in (*range(20), 254, 255):
        assert answer(program, CHARACTER, 195, minor) == (minor not in minors), f"minor {minor}"
        assert answer(program, CHARACTER, 194, minor) == 1, "another driver's device"
        assert answer(program, BLOCK, 195, minor) == 1, "a disk of the same number"


def test_a_filter_denies_something() -> None:
    """Else the kernel would refuse it, for the part that is never reached."""
    with pytest.raises(ValueError, match="has some to deny"):
        device_filter.assemble(195, [])


def test_what_is_no_group_takes_no_filter(tmp_path: Path) -> None:
    """As an error that names the cause: for want of rights, or for the directory."""
    with pytest.raises(OSError) as raised:
        device_filter.attach(tmp_path, major=195, minors=[0])
    assert raised.value.errno in (errno.EPERM, errno.ENOSYS, errno.EBADF, errno.EINVAL)
    assert raised.value.filename in ("bpf", str(tmp_path))
