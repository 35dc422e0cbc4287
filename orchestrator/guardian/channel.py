"""JSON messages with file descriptors over a stream socket, without blocking.

A frame is a four-byte length and that many bytes of JSON; the descriptors ride on its first byte. A stream, not
packets: an environment may be larger than the kernel takes in one packet.
"""

import array
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from orchestrator.errors import RunnerLost

Document: TypeAlias = dict[str, Any]

MAX_FRAME: Final = 16 << 20
MAX_DESCRIPTORS: Final = 16
BUFFER: Final = 1 << 20
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
_LENGTH: Final = struct.Struct("!I")


class Frame(NamedTuple):
    """A message and the descriptors that came with it; whoever takes it owns them."""

    message: Document
    descriptors: list[int]


class Channel:
    """One end of a connection; messages that the other side has no room for wait here."""

    def __init__(self, connection: socket.socket) -> None:
        """Take ownership of a connected stream socket."""
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._socket = connection
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self.closed = False  # the other side is gone; what it sent before has been delivered

    def fileno(self) -> int:
        """Return the socket's descriptor, for selectors and event loops."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Something waits for room on the other side."""
        return bool(self._unsent)

    def send(self, message: Document, descriptors: Sequence[int] = ()) -> None:
        """Send, or queue, one message; the descriptors are closed here once they are sent.

        A message to a side that is gone is dropped; ``receive`` finds out.
        """
        data = json.dumps({**message, "descriptors": len(descriptors)}, separators=(",", ":")).encode()
        self._unsent.append((memoryview(_LENGTH.pack(len(data)) + data), list(descriptors)))
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:  # the other side is gone; what it sent before can still be received
                self._drop_unsent()
                return
            for descriptor in descriptors:
                os.close(descriptor)
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = (data[sent:], [])

    def receive(self) -> list[Frame]:
        """Return every complete message that has arrived; sets ``closed`` at the end of the stream."""
        while not self.closed:
            try:
                # Not socket.recv_fds: it drops its flags argument, and a descriptor without CLOEXEC leaks into helpers.
                data, ancillary, flags, _address = self._socket.recvmsg(BUFFER, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            except OSError:
                self.closed = True
                break
            for _level, _kind, packed in ancillary:
                received = array.array("i")
                received.frombytes(packed[: len(packed) - len(packed) % received.itemsize])
                self._descriptors.extend(received)
            if flags & socket.MSG_CTRUNC:
                raise RunnerLost("descriptors were lost on the way: too many are open")
            self._received += data
            self.closed = not data
        return self._split()

    def close(self) -> None:
        """Close the connection and every descriptor that nobody took."""
        self._drop_unsent()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._socket.close()
        self.closed = True

    def _split(self) -> list[Frame]:
        frames = []
        start = 0
        while len(self._received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, start)
            if length > MAX_FRAME:
                raise RunnerLost(f"a message of {length} bytes is no message")
            end = start + _LENGTH.size + length
            if len(self._received) < end:
                break
            message = json.loads(self._received[start + _LENGTH.size : end])
            frames.append(Frame(message, [self._descriptors.popleft() for _ in range(message.pop("descriptors"))]))
            start = end
        del self._received[:start]
        return frames

    def _drop_unsent(self) -> None:
        for _data, descriptors in self._unsent:
            for descriptor in descriptors:
                os.close(descriptor)
        self._unsent.clear()
