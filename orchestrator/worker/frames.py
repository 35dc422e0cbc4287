"""Messages between a worker and its runners: JSON, one per packet of a sequenced-packet socket pair.

A packet is received whole by exactly one reader. That is what makes a line of claimed jobs retractable: the worker
keeps the runner's end too, and whatever it reads there itself the runner has not started and never will. A stream
could not tell. A message too large for a packet travels in a memory file whose descriptor the packet carries.
"""

import array
import json
import os
import socket
from collections.abc import Callable
from typing import Any, Final, TypeAlias

#: Largest message sent inside a packet; the kernel's default send buffer is about 200 KiB.
INLINE_LIMIT: Final = 48 * 1024
DESCRIPTOR_BYTES: Final = array.array("i").itemsize

Message: TypeAlias = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def send(channel: socket.socket, message: Message) -> bool:
    """Send one message; False when the other side's buffer is full, and then nothing was sent.

    Raises:
        OSError: If the other side is gone.
    """
    data = _encode(message).encode("utf-8", "surrogatepass")
    try:
        if len(data) <= INLINE_LIMIT:
            channel.send(data)
        else:
            _send_large(channel, data)
    except BlockingIOError:
        return False
    return True


def receive(
    channel: socket.socket, loads: Callable[[bytes], Any] = json.loads, *, wait: bool = False
) -> Message | None:
    """Return the next message, or None when the other side is gone.

    Args:
        channel: A sequenced-packet socket.
        loads: Decodes the JSON.
        wait: Wait for a message, if the socket is a blocking one. The flag is given with each call because both
        processes
            share the socket's own.

    Raises:
        BlockingIOError: If nothing is there and it was not told to wait.
        ValueError: If the message is not a JSON object.
    """
    # Not socket.recv_fds: before Python 3.14 it drops the flags it is given.
    flags = 0 if wait else socket.MSG_DONTWAIT
    data, ancillary, _flags, _address = channel.recvmsg(INLINE_LIMIT + 1, socket.CMSG_LEN(DESCRIPTOR_BYTES), flags)
    if ancillary:
        (descriptor,) = array.array("i", ancillary[0][2])
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            data = file.read()
    if not data:
        return None
    message = loads(data)
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message


def _send_large(channel: socket.socket, data: bytes) -> None:
    descriptor = os.memfd_create("frame", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        socket.send_fds(channel, [b"{}"], [descriptor])
    finally:
        os.close(descriptor)
