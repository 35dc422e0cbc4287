"""Queues that expire when nobody uses them: each use puts the expiry off."""

from collections.abc import Callable

import pytest
from kombu import Connection, Queue

from orchestrator.streams import keys

from .inbox import Inbox
from .servers import RedisServer

EXPIRY_MS = 60_000
STREAM = keys.stream_of("fleeting")


@pytest.mark.parametrize("consumed", [False, True], ids=["got", "consumed"])
def test_reading_puts_the_expiry_off(
    connect: Callable[..., Connection], redis_server: RedisServer, consumed: bool
) -> None:
    connection = connect()
    queue = Queue("fleeting", routing_key="fleeting", expires=EXPIRY_MS / 1000)
    with connection.Producer() as producer:
        producer.publish("a", exchange="", routing_key="fleeting", declare=[queue])
    client = redis_server.client()
    client.pexpire(STREAM, EXPIRY_MS // 2)
    if consumed:
        inbox = Inbox(connection, "other")
        inbox.consumer.add_queue(queue)
        inbox.consumer.consume()
        inbox.drain(1)
    else:
        assert queue(connection.default_channel).get(no_ack=True) is not None
    assert client.pttl(STREAM) > EXPIRY_MS // 2


def test_every_step_of_priority_expires(connect: Callable[..., Connection], redis_server: RedisServer) -> None:
    connection = connect()
    queue = Queue("fleeting", routing_key="fleeting", expires=EXPIRY_MS / 1000)
    with connection.Producer() as producer:
        for priority in (0, 3, 6, 9):
            producer.publish(priority, exchange="", routing_key="fleeting", declare=[queue], priority=priority)
    client = redis_server.client()
    streams = [keys.priority_stream(STREAM, step) for step in (0, 3, 6, 9)]
    assert all(0 < client.pttl(stream) <= EXPIRY_MS for stream in streams)
