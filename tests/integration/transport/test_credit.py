"""Credit: how many entries of a queue a host asks for, beside prefetch."""

import time
from collections.abc import Callable, Iterator

import pytest
from kombu import Connection
from kombu.asynchronous import Hub

from orchestrator.domain.entry import JobEntry
from orchestrator.streams.publisher import RedisStreamPublisher

from .inbox import Inbox, publish
from .servers import RedisServer

Connect = Callable[..., Connection]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An event loop as a worker's."""
    hub = Hub()
    yield hub
    hub.close()


def run(hub: Hub, condition: Callable[[], object], *, seconds: float) -> bool:
    """Run the loop until the condition holds or the time is over; return whether it does."""
    deadline = time.monotonic() + seconds
    hub.call_repeatedly(0.02, lambda: None)
    while not condition() and time.monotonic() < deadline:
        hub.run_once()
    return bool(condition())


def test_no_more_entries_come_than_credit_allows(connect: Connect) -> None:
    connection = connect()
    publish(connection, "gpu", *range(10))
    connection.transport.set_credit("gpu", 3)
    inbox = Inbox(connection, "gpu", prefetch=1).drain(3)
    assert inbox.stays_at(3)
    assert connection.transport.credits == {"gpu": 0}
    inbox.messages[0].ack()
    assert inbox.stays_at(3), "an acknowledgement is no credit"
    connection.transport.set_credit("gpu", 2)
    inbox.drain(5)
    assert inbox.stays_at(5)


def test_credit_takes_no_prefetch_and_prefetch_no_credit(connect: Connect) -> None:
    """A host that waits for GPUs goes on with its other tasks."""
    connection = connect()
    publish(connection, "gpu", *["gpu"] * 5)
    publish(connection, "cpu", *["cpu"] * 5)
    connection.transport.set_credit("gpu", 4)
    inbox = Inbox(connection, "gpu", "cpu", prefetch=2).drain(6)
    assert inbox.stays_at(6)
    assert (inbox.bodies.count("gpu"), inbox.bodies.count("cpu")) == (4, 2)
    next(message for message in inbox.messages if message.decode() == "cpu").ack()
    inbox.drain(7)
    assert inbox.bodies[-1] == "cpu"


def test_a_queue_without_credit_does_not_hold_up_another(connect: Connect) -> None:
    connection = connect()
    connection.transport.set_credit("gpu", 0)
    publish(connection, "gpu", *["gpu"] * 5)
    inbox = Inbox(connection, "gpu", "cpu", prefetch=1, ack=True)
    assert inbox.stays_at(0)
    publish(connection, "cpu", "cpu")
    inbox.drain(1)
    assert inbox.bodies == ["cpu"]


def test_a_hosts_own_stream_and_the_shared_one_share_credit(connect: Connect, redis_server: RedisServer) -> None:
    publisher = RedisStreamPublisher(redis_server.client())
    for node in ("h1", None):
        publisher.publish([JobEntry(f"{node}-{n}", 1 + n, "t", "gpu", node, {}) for n in range(3)])
    connection = connect(node="h1")
    connection.transport.set_credit("gpu", 4)
    inbox = Inbox(connection, "gpu").drain(4)
    assert inbox.stays_at(4)
    assert [message.headers["id"] for message in inbox.messages] == ["h1-0", "h1-1", "h1-2", "None-0"]


def test_ending_the_regime_returns_the_queue_to_prefetch(connect: Connect) -> None:
    connection = connect()
    publish(connection, "gpu", *range(5))
    connection.transport.set_credit("gpu", 0)
    inbox = Inbox(connection, "gpu", prefetch=2)
    assert inbox.stays_at(0)
    inbox.channel.set_credit("gpu", None)
    inbox.drain(2)
    assert inbox.stays_at(2)


def test_negative_credit_is_refused(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(ValueError, match="negative"):
        connection.transport.set_credit("gpu", -1)


def test_more_credit_interrupts_a_wait_at_once(connect: Connect, hub: Hub) -> None:
    """The loop waits for another queue's news; it does not find the entry only when that wait ends."""
    connection = connect()
    publish(connection, "gpu", "a")
    connection.transport.set_credit("gpu", 0)
    inbox = Inbox(connection, "gpu", "cpu", prefetch=4)
    connection.register_with_event_loop(hub)
    assert not run(hub, lambda: inbox.messages, seconds=0.3)
    began = time.monotonic()
    connection.transport.set_credit("gpu", 1)
    assert run(hub, lambda: inbox.messages, seconds=3)
    assert time.monotonic() - began < 0.25


def test_the_loop_acknowledges_in_batches(connect: Connect, hub: Hub, redis_server: RedisServer) -> None:
    connection = connect("batching")
    publish(connection, "q", *range(200))
    inbox = Inbox(connection, "q", prefetch=50, ack=True)
    connection.register_with_event_loop(hub)
    client = redis_server.client()
    client.config_resetstat()
    assert run(hub, lambda: len(inbox.messages) == 200, seconds=5)
    assert run(hub, lambda: not client.xlen("stream:orchestrator:q"), seconds=3)
    assert client.info("commandstats")["cmdstat_xack"]["calls"] <= 20


def test_a_reply_without_listeners_does_not_disturb_the_loop(connect: Connect, hub: Hub) -> None:
    """A queue cancelled while a read of it was in flight hands its entries back."""
    connection = connect()
    inbox = Inbox(connection, "q", prefetch=4)
    connection.register_with_event_loop(hub)
    assert not run(hub, lambda: inbox.messages, seconds=0.1)
    inbox.consumer.cancel()
    publish(connect("producer"), "q", "x")
    assert not run(hub, lambda: inbox.messages, seconds=0.2)
    assert Inbox(connect("c2"), "q").drain(1).bodies == ["x"]


def test_many_messages_flow_through_the_loop(connect: Connect, hub: Hub) -> None:
    connection = connect()
    inbox = Inbox(connection, "a", "b", prefetch=8, ack=True)
    connection.register_with_event_loop(hub)
    producer = connect("producer")
    publish(producer, "a", *range(300))
    publish(producer, "b", *range(300), priority=6)
    assert run(hub, lambda: len(inbox.messages) == 600, seconds=10)
    assert sorted(inbox.bodies) == sorted([*range(300), *range(300)])
