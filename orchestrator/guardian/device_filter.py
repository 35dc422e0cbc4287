"""A filter of devices for the second version of control groups: a BPF program of a few instructions, written out here.

The kernel asks the program at every open, and at every making of a device file, by a process of the group or of one
below it. It is freed with the group.

Source: linux/bpf.h (``struct bpf_insn``, ``struct bpf_cgroup_dev_ctx``, ``union bpf_attr``), as of Linux 4.15.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Final

#: The number of bpf(2) by machine; Python and the C library have no name for it.
SYSCALLS: Final = {"x86_64": 321, "aarch64": 280}

_PROG_LOAD, _PROG_ATTACH = 5, 8
_TYPE_CGROUP_DEVICE: Final = 15  # of programs
_CGROUP_DEVICE: Final = 6  # the place where it is attached
_ALLOW_MULTI: Final = 2  # what stands above the group, systemd's for instance, is asked as well: all must allow
_NAME: Final = b"gpu_filter"  # as `bpftool prog` shows it

#: Instructions: what is done, with a constant or with a field of the question.
LOAD, AND, SKIP_UNLESS, SKIP_IF, SET, EXIT = 0x61, 0x54, 0x55, 0x15, 0xB7, 0x95
_ANSWER, _QUESTION, _VALUE = 0, 1, 2  # registers
_KIND, _MAJOR, _MINOR = 0, 4, 8  # where the question's fields are; the kind is in the lower half of its field
_CHARACTER: Final = 2
_KIND_MASK: Final = 0xFFFF

# Loaded at import, as in the kernel's other calls.
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def attach(group: Path, *, major: int, minors: Collection[int]) -> None:
    """Keep the processes of a group from these character devices; every other one stays as it is.

    Args:
        group: Directory of a group of the second version.
        major: Of the devices.
        minors: Of the devices; at least one.

    Raises:
        OSError: If the kernel does not let us, or knows no such thing.
    """
    with ExitStack() as undo:
        program = _load(assemble(major, minors))
        undo.callback(os.close, program)  # once it is attached, the group holds it
        place = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, place)
        _bpf(_PROG_ATTACH, struct.pack("=IIII", place, program, _CGROUP_DEVICE, _ALLOW_MULTI), group)


def assemble(major: int, minors: Collection[int]) -> bytes:
    """Return the program that answers 0, no, for these character devices, and 1 for all others.

    Raises:
        ValueError: If there is none: the kernel takes no program with a part that is never reached.
    """
    denied = sorted(set(minors))
    if not denied:
        raise ValueError("a filter of devices has some to deny")
    end = len(denied)
    return b"".join(
        (
            _instruct(LOAD, _VALUE, _QUESTION, _KIND),
            _instruct(AND, _VALUE, constant=_KIND_MASK),
            _instruct(SKIP_UNLESS, _VALUE, offset=end + 3, constant=_CHARACTER),
            _instruct(LOAD, _VALUE, _QUESTION, _MAJOR),
            _instruct(SKIP_UNLESS, _VALUE, offset=end + 1, constant=major),
            _instruct(LOAD, _VALUE, _QUESTION, _MINOR),
            *(_instruct(SKIP_IF, _VALUE, offset=end - at + 1, constant=each) for at, each in enumerate(denied)),
            _instruct(SET, _ANSWER, constant=1),
            _instruct(EXIT),
            _instruct(SET, _ANSWER, constant=0),
            _instruct(EXIT),
        )
    )


def _instruct(code: int, target: int = 0, source: int = 0, offset: int = 0, *, constant: int = 0) -> bytes:
    return struct.pack("<BBhi", code, target | source << 4, offset, constant)  # both machines are little-endian


def _load(program: bytes) -> int:
    """Give the kernel a program and return its descriptor."""
    instructions = ctypes.create_string_buffer(program, len(program))
    no_licence = ctypes.create_string_buffer(b"")  # it calls none of the functions that ask for one
    where, licence = ctypes.addressof(instructions), ctypes.addressof(no_licence)
    count = len(program) // struct.calcsize("<BBhi")
    attributes = struct.pack("=IIQQIIQII16s", _TYPE_CGROUP_DEVICE, count, where, licence, 0, 0, 0, 0, 0, _NAME)
    return _bpf(_PROG_LOAD, attributes)


def _bpf(command: int, attributes: bytes, group: Path | None = None) -> int:
    number = SYSCALLS.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "bpf")
    handed = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), handed, ctypes.c_uint(len(attributes)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "bpf" if group is None else str(group))
    return result
