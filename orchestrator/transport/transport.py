"""The transport: what kombu's connection talks to."""

import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty
from typing import Any, Final

from kombu.transport import redis as stock

from orchestrator.transport.channel import Channel
from orchestrator.transport.credit import Credit
from orchestrator.transport.poller import StreamPoller

#: Acknowledgements are flushed at the latest when so many wait.
MOST_ACKS: Final = 64


class Transport(stock.Transport):
    """Redis Streams for queues; pub/sub for fanout, as stock kombu does it."""

    Channel = Channel
    client: Any

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if client.transport_cls == "rediss-streams" and not client.ssl:
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)
        self.cycle = StreamPoller()
        self.credit = Credit()
        self.consumers: dict[str, tuple[Callable[[Any], Any], bool]] = {}  # queue -> callback, no_ack
        self.loop: Any = None
        self._tick: Callable[[], None] | None = None
        #: Called in the event loop when everything that one read brought has been handed out, ahead of what the loop
        #: does then: Celery's events, which are a round trip to the server, the next read.
        self.after_read: Callable[[], None] | None = None

    def set_credit(self, queue: str, entries: int | None) -> None:
        """Let at most so many more entries of a queue be delivered over this connection; None lifts the limit.

        Entries of a queue under credit take no prefetch. More credit takes effect at once. Call it in the thread that
        runs the event loop.
        """
        self.credit.set(queue, entries)
        if self.loop is not None and self._tick is not None:
            self._pump(busy=False)
        else:
            self.cycle.on_poll_start()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Read and write when the loop says so."""
        before = set(loop.on_tick)
        super().register_with_event_loop(connection, loop)
        loop.on_tick -= loop.on_tick - before  # stock kombu's tick registers every socket anew, every time
        self.loop, self._tick = loop, self._on_tick
        loop.on_tick.add(self._tick)

    def close_connection(self, connection: Any) -> None:
        """Close every channel; acknowledgements still leave, through the process-wide connection."""
        if self.loop is not None and self._tick is not None:
            self.loop.on_tick.discard(self._tick)
        self._tick = None
        super().close_connection(connection)

    def on_readable(self, fileno: int) -> None:
        """Read one connection for the event loop, to which a reply without messages is no event."""
        with suppress(Empty):
            super().on_readable(fileno)
            if self.after_read is not None:
                self.after_read()

    def _on_tick(self) -> None:
        loop = self.loop
        if loop._ready and loop._waker is not None:
            # A callback that was scheduled by a callback: the loop would serve it only after its next poll.
            loop._waker.wake()
            busy = True
        else:
            busy = bool(loop.poller.poll(0))
        deliveries = [channel.deliveries for channel in self.channels if channel.has_deliveries]
        for one in deliveries:
            if one.acks and (not busy or len(one.acks) >= MOST_ACKS):
                one.flush_or_leave()
        self._pump(busy)

    def _pump(self, busy: bool) -> None:
        loop, cycle = self.loop, self.cycle
        cycle.on_poll_start(busy)
        for fd in cycle._fd_to_chan:
            if fd not in loop.readers:
                loop.add_reader(fd, self.on_readable, fd)

    @property
    def credits(self) -> Mapping[str, int]:
        """How much credit each queue under credit has left."""
        return self.credit.left()
