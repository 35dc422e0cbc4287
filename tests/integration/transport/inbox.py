"""A consumer for tests: keeps what it is delivered, and settles it when told to."""

import time
from typing import Any

from kombu import Connection, Consumer, Queue


def queue_of(name: str) -> Queue:
    """Return a queue that is reached by its own name."""
    return Queue(name, routing_key=name, durable=True)


def publish(connection: Connection, queue: str, *bodies: Any, **options: Any) -> None:
    """Publish to one queue."""
    producer = connection.Producer()
    for body in bodies:
        producer.publish(body, exchange="", routing_key=queue, declare=[queue_of(queue)], **options)


class Inbox:
    """Consumes queues of one connection on a channel of its own."""

    def __init__(
        self, connection: Connection, *queues: str, prefetch: int = 0, ack: bool = False, no_ack: bool = False
    ) -> None:
        self.messages: list[Any] = []
        self.ack, self.connection = ack, connection
        self.channel = connection.channel()
        self.channel.basic_qos(0, prefetch, False)
        self.consumer = Consumer(
            self.channel, [queue_of(queue) for queue in queues], on_message=self._on_message, no_ack=no_ack
        )
        self.consumer.consume()

    def _on_message(self, message: Any) -> None:
        self.messages.append(message)
        if self.ack:
            message.ack()

    @property
    def bodies(self) -> list[Any]:
        return [message.decode() for message in self.messages]

    def drain(self, wanted: int, *, seconds: float = 5.0) -> "Inbox":
        """Read until so many messages have come; fail when they do not."""
        deadline = time.monotonic() + seconds
        while len(self.messages) < wanted:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(self.messages)} of {wanted} messages came: {self.messages}"
            try:
                self.connection.drain_events(timeout=min(left, 0.5))
            except TimeoutError:
                continue
        return self

    def stays_at(self, count: int, *, seconds: float = 0.4) -> bool:
        """Read for a while; whether no more than ``count`` messages are there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self.connection.drain_events(timeout=0.1)
            except TimeoutError:
                continue
        return len(self.messages) == count
