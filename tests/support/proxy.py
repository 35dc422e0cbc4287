"""A proxy on a loopback port between a process and its server, for cuts, refusals, delays and black holes."""

import contextlib
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import Self

CHUNK = 1 << 16
TICK_SECONDS = 0.05


@dataclass(eq=False)
class _Pipe:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket


class Proxy:
    """Forwards to a loopback port in threads of its own; ``with`` ends every connection."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._refusing = False
        self._open = threading.Event()  # clear: bytes are held back, in both directions
        self._open.set()
        self._delay = 0.0
        self._closed = False
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection at once; new ones are served."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """End every connection, and each new one at once, until ``heal``."""
        self._refusing = True
        self.cut()

    def black_hole(self) -> None:
        """Let connections stand and nothing through, until ``heal``."""
        self._open.clear()

    def delay(self, seconds: float) -> None:
        """Hold back everything for so long, in each direction."""
        self._delay = seconds

    def heal(self) -> None:
        """Serve as if nothing had been."""
        self._refusing, self._delay = False, 0.0
        self._open.set()

    def close(self) -> None:
        """End it."""
        self._closed = True
        self.heal()
        self._listener.close()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._closed:
                if selector.select(TICK_SECONDS):
                    with contextlib.suppress(OSError):  # closed meanwhile
                        self._serve(self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        if self._refusing:
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        self.accepted += 1
        with self._lock:
            self._sockets |= {client, server}
        for pipe in (_Pipe(client, server), _Pipe(server, client)):
            threading.Thread(target=self._pump, args=(pipe,), daemon=True).start()

    def _pump(self, pipe: _Pipe) -> None:
        with contextlib.suppress(OSError):
            while data := pipe.source.recv(CHUNK):
                if self._delay:
                    time.sleep(self._delay)
                self._open.wait()
                pipe.sink.sendall(data)
        for one in (pipe.source, pipe.sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._sockets.discard(one)
        pipe.source.close()
