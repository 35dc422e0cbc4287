"""A proxy that cuts connections on which chosen bytes pass, before the server sees them or before its answer comes."""

import contextlib
import threading
from enum import Enum

from tests.support.proxy import CHUNK, Proxy, _Pipe


class Cut(Enum):
    """When the connection ends."""

    REQUEST = "request"  # the server never learns of it
    REPLY = "reply"  # the server did it, and nobody is told


class Wire(Proxy):
    """Cuts a connection when a client's request contains the armed bytes."""

    def __init__(self, port: int) -> None:
        self._armed: tuple[bytes, Cut] | None = None
        self._left = self._seen = 0
        self._arming = threading.Lock()
        self._doomed: set[int] = set()  # ids of sockets to clients whose next answer is withheld
        super().__init__(port)

    def arm(self, marker: bytes, cut: Cut, *, times: int) -> None:
        """Cut so many connections on which a request with these bytes passes, at every third such request.

        Never at two in a row: kombu gives a publication up, with an error, when its new connection fails as well.
        """
        with self._arming:
            self._armed, self._left, self._seen = (marker, cut), times, 0

    @property
    def left(self) -> int:
        """How many of the cuts are still to come."""
        return self._left

    def _due(self, data: bytes) -> Cut | None:
        with self._arming:
            if self._left and self._armed and self._armed[0] in data:
                self._seen += 1
                if self._seen % 3 == 1:
                    self._left -= 1
                    return self._armed[1]
        return None

    def _pump(self, pipe: _Pipe) -> None:
        is_request = pipe.sink.getpeername()[1] == self._target
        with contextlib.suppress(OSError):
            while data := pipe.source.recv(CHUNK):
                if is_request and (cut := self._due(data)):
                    if cut is Cut.REQUEST:
                        break
                    self._doomed.add(id(pipe.source))
                elif not is_request and id(pipe.sink) in self._doomed:
                    break
                pipe.sink.sendall(data)
        self._doomed.discard(id(pipe.sink))
        self._close(pipe)

    def _close(self, pipe: _Pipe) -> None:
        for one in (pipe.source, pipe.sink):
            with contextlib.suppress(OSError):
                one.shutdown(2)
            with self._lock:
                self._sockets.discard(one)
        pipe.source.close()
