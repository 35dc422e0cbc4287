"""Delivery over real servers, old and new, without a worker."""

import gc
import json
import time
from collections.abc import Callable

import pytest
from kombu import Connection, Exchange, Queue
from kombu.exceptions import ChannelError

from orchestrator.domain.entry import JobEntry
from orchestrator.streams import keys
from orchestrator.streams.publisher import RedisStreamPublisher

from .inbox import Inbox, publish
from .servers import RedisServer, wait_for

STREAM = keys.stream_of("q")
Connect = Callable[..., Connection]


def pending(server: RedisServer, stream: str = STREAM) -> int:
    with server.client() as client:
        return client.xpending(stream, keys.GROUP)["pending"] if client.exists(stream) else 0


def test_messages_come_in_order_and_an_ack_leaves_nothing(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    publish(connection, "q", *range(250))
    inbox = Inbox(connection, "q", ack=True).drain(250)
    assert inbox.bodies == list(range(250))
    assert redis_server.client().xlen(STREAM) == 0
    assert pending(redis_server) == 0


def test_message_priority_zero_goes_first_and_is_never_mixed(connect: Connect) -> None:
    connection = connect()
    for priority in (9, 6, 0, 3):
        publish(connection, "q", *[f"{priority}-{n}" for n in range(5)], priority=priority)
    inbox = Inbox(connection, "q", prefetch=3, ack=True).drain(20)
    assert inbox.bodies == [f"{priority}-{n}" for priority in (0, 3, 6, 9) for n in range(5)]


def test_prefetch_bounds_what_is_delivered_over_all_priorities(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    for priority in (0, 3, 6, 9):
        publish(connection, "q", *range(5), priority=priority)
    inbox = Inbox(connection, "q", prefetch=3).drain(3)
    assert inbox.stays_at(3)
    inbox.messages[0].ack()
    inbox.drain(4)
    assert inbox.stays_at(4)


def test_queues_take_turns_at_the_same_priority(connect: Connect) -> None:
    connection = connect()
    publish(connection, "busy", *["busy"] * 50)
    publish(connection, "quiet", *["quiet"] * 5)
    inbox = Inbox(connection, "busy", "quiet", prefetch=1, ack=True).drain(20)
    assert inbox.bodies.count("quiet") == 5


def test_a_rejected_message_comes_back_first_and_says_so(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    publish(connection, "q", "a", "b")
    inbox = Inbox(connection, "q", prefetch=1).drain(1)
    inbox.messages[0].reject(requeue=True)
    inbox.drain(2)
    assert inbox.bodies == ["a", "a"]
    assert inbox.messages[1].delivery_info["redelivered"] is True
    inbox.messages[1].reject(requeue=False)
    inbox.drain(3)
    assert inbox.bodies[-1] == "b"
    assert "redelivered" not in inbox.messages[2].delivery_info


def test_only_the_owner_can_hand_an_entry_back(connect: Connect, redis_server: RedisServer) -> None:
    """An entry that was taken over is not duplicated by its former consumer's reject."""
    connection = connect()
    publish(connection, "q", "a")
    inbox = Inbox(connection, "q").drain(1)
    client = redis_server.client()
    entry_id = client.xrange(STREAM)[0][0]
    client.xclaim(STREAM, keys.GROUP, "other", 0, [entry_id])
    inbox.messages[0].reject(requeue=True)
    assert client.xlen(keys.front_stream(STREAM)) == 0
    assert client.xlen(STREAM) == 1


def test_basic_get_returns_one_message_or_none(connect: Connect, redis_server: RedisServer) -> None:
    channel = connect().default_channel
    assert channel.basic_get("q") is None
    publish(connect(), "q", "a", "b")
    message = channel.basic_get("q")
    assert message.decode() == "a"
    message.ack()
    assert channel.basic_get("q", no_ack=True).decode() == "b"
    assert pending(redis_server) == 0
    assert redis_server.client().xlen(STREAM) == 0


def test_entries_of_no_ack_consumers_are_settled_at_delivery(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    publish(connection, "q", *range(5))
    Inbox(connection, "q", no_ack=True).drain(5)
    assert redis_server.client().xlen(STREAM) == 0


def test_size_and_purge_leave_out_what_somebody_works_on(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    publish(connection, "q", *range(5))
    publish(connection, "q", *range(5), priority=9)
    inbox = Inbox(connection, "q", prefetch=2).drain(2)
    channel = connection.default_channel
    assert channel.queue_declare("q", passive=True).message_count == 8
    assert channel.queue_purge("q") == 8
    assert channel.queue_declare("q").message_count == 0
    assert pending(redis_server) == 2
    inbox.messages[0].ack()
    inbox.messages[1].reject(requeue=True)
    inbox.drain(3)
    assert inbox.bodies == [0, 1, 1]


def test_a_queue_that_was_never_used_cannot_be_declared_passively(connect: Connect) -> None:
    channel = connect().default_channel
    with pytest.raises(ChannelError):
        channel.queue_declare("never", passive=True)


def test_a_deleted_queue_leaves_no_key(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    channel = connection.default_channel
    queue = Queue("q", Exchange("x"), routing_key="q")(channel)
    queue.declare()
    connection.Producer().publish("a", exchange="x", routing_key="q", priority=3)
    assert channel.queue_declare("q", passive=True).message_count == 1
    queue.delete()
    assert [key for key in redis_server.client().keys("*") if b"stream:" in key] == []


def test_a_key_prefix_is_put_before_every_stream(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect(global_keyprefix="tenant:")
    publish(connection, "q", *range(3))
    Inbox(connection, "q", ack=True).drain(3)
    assert connection.default_channel.queue_declare("q", passive=True).message_count == 0
    assert all(key.startswith(b"tenant:") for key in redis_server.client().keys("*"))


def test_a_queue_with_an_expiry_goes_when_nobody_uses_it(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    channel = connection.default_channel
    channel.queue_declare("q", arguments={"x-expires": 60_000})
    connection.Producer(channel).publish("a", exchange="", routing_key="q")
    assert 0 < redis_server.client().pttl(STREAM) <= 60_000


def test_a_batch_of_messages_is_published_in_one_go(connect: Connect) -> None:
    connection = connect()
    channel = connection.default_channel
    batch = channel.create_publish_batch(100)
    for n in range(10):
        message = channel.prepare_message(json.dumps(n), content_type="application/json", content_encoding="utf-8")
        batch.publish(message, exchange="", routing_key="q")
    assert channel.queue_declare("q").message_count == 0
    batch.flush()
    batch.close()
    assert Inbox(connection, "q", ack=True).drain(10).bodies == list(range(10))


def test_a_job_entry_becomes_a_celery_message_without_arguments(connect: Connect, redis_server: RedisServer) -> None:
    headers = {"argsrepr": "('x',)", "orchestrator": {"gpus": 2}, "root_id": "r"}
    RedisStreamPublisher(redis_server.client()).publish([JobEntry("id-1", 7, "train", "gpu", None, headers)])
    (message,) = Inbox(connect(), "gpu").drain(1).messages
    assert message.headers["task"] == "train"
    assert message.headers["id"] == message.properties["correlation_id"] == "id-1"
    assert message.headers["orchestrator"] == {"gpus": 2, "seq": 7}
    assert (message.headers["argsrepr"], message.headers["root_id"]) == ("('x',)", "r")
    assert message.decode()[:2] == [[], {}]
    assert message.delivery_tag.startswith("stream:orchestrator:inference_jobs|")
    assert message.delivery_info["routing_key"] == "gpu"


def test_a_host_reads_its_own_stream_first_and_no_other_hosts(connect: Connect, redis_server: RedisServer) -> None:
    publisher = RedisStreamPublisher(redis_server.client())
    publisher.publish(
        [JobEntry(name, 1, "t", "gpu", node, {}) for name, node in (("shared", None), ("b", "h2"), ("a", "h1"))]
    )
    inbox = Inbox(connect(node="h1"), "gpu", prefetch=5).drain(2)
    assert [message.headers["id"] for message in inbox.messages] == ["a", "shared"]
    assert inbox.stays_at(2)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"m": b"\xff\x00"}, "not JSON"),
        ({"m": "[]"}, "not a JSON object"),
        ({"m": "{}"}, "properties"),
        ({"m": '{"properties":{"delivery_info":3}}'}, "delivery_info"),
        ({"m": '{"body":"a","properties":{"body_encoding":"base64"}}'}, "malformed message"),
        ({"m": '{"body":"x","properties":{"body_encoding":"rot13"}}'}, "malformed message"),
        ({"m": '{"headers":[],"properties":{}}'}, "headers"),
        ({"j": '{"id":"1"}'}, "task"),
        ({"j": '{"id":"1","task":"t","queue":"q","seq":"5"}'}, "seq"),
        ({"other": "x"}, "one field"),
        ({"m": "{}", "j": "{}"}, "one field"),
        ({"m": "[" * 100_000}, "not JSON"),
    ],
)
def test_an_undecodable_entry_is_kept_raw_with_its_reason(
    connect: Connect, redis_server: RedisServer, fields: dict[str, bytes | str], reason: str
) -> None:
    """It blocks nobody, and nothing of it is lost."""
    client = redis_server.client()
    client.xadd(STREAM, fields)
    connection = connect()
    publish(connection, "q", "after")
    inbox = Inbox(connection, "q", ack=True).drain(1)
    assert inbox.bodies == ["after"]
    ((_, dead),) = client.xrange(keys.dead_letter_stream(STREAM))
    assert reason in dead.pop(b"reason").decode()
    assert dead.pop(b"stream") == STREAM.encode()
    assert dead.pop(b"id")
    assert dead == {
        name.encode(): value.encode() if isinstance(value, str) else value for name, value in fields.items()
    }
    assert client.xlen(STREAM) == 0


def test_idle_entries_of_a_dead_consumer_are_delivered_again(connect: Connect, redis_server: RedisServer) -> None:
    publish(connect(), "q", "a")
    client = redis_server.client()
    client.xgroup_create(STREAM, keys.GROUP, id="0")
    client.xreadgroup(keys.GROUP, "dead", {STREAM: ">"})
    inbox = Inbox(connect("c2", visibility=0.4), "q").drain(1)
    assert inbox.bodies == ["a"]
    assert inbox.messages[0].delivery_info["redelivered"] is True
    inbox.messages[0].ack()
    assert pending(redis_server) == 0


def test_an_entry_that_is_worked_on_is_renewed_and_stays(connect: Connect, redis_server: RedisServer) -> None:
    """However long the work takes, and although nobody reads meanwhile."""
    owner, rival = connect("c1", visibility=0.6), connect("c2", visibility=0.6)
    publish(owner, "q", "a")
    inbox = Inbox(owner, "q").drain(1)
    assert Inbox(rival, "q").stays_at(0, seconds=2.0)
    assert redis_server.client().xpending_range(STREAM, keys.GROUP, "-", "+", 1)[0]["consumer"] == b"c1"
    inbox.messages[0].ack()
    assert pending(redis_server) == 0


def test_a_late_consumer_does_not_deliver_its_own_work_twice(
    connect: Connect, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry whose renewals were late is claimed by the process that works on it, and not delivered again."""
    connection = connect("c1", visibility=0.4)
    publish(connection, "q", "a")
    inbox = Inbox(connection, "q").drain(1)
    monkeypatch.setattr(inbox.channel.deliveries, "renew", lambda: None)
    client = redis_server.client()

    def claimed() -> bool:
        assert inbox.stays_at(1, seconds=0.1)
        return bool(client.xpending_range(STREAM, keys.GROUP, "-", "+", 1)[0]["times_delivered"] > 1)

    wait_for(claimed, seconds=5, what="a claim by the entry's own consumer")
    assert inbox.stays_at(1)


def test_an_entry_that_is_never_settled_ends_as_a_dead_letter(connect: Connect, redis_server: RedisServer) -> None:
    publish(connect(), "q", "poison")
    client = redis_server.client()
    client.xgroup_create(STREAM, keys.GROUP, id="0")
    ((_, ((entry_id, _),)),) = client.xreadgroup(keys.GROUP, "dead", {STREAM: ">"})
    client.xclaim(STREAM, keys.GROUP, "dead", 0, [entry_id], idle=60_000, retrycount=3)
    inbox = Inbox(connect("c2", visibility=0.4, max_deliveries=3), "q")
    wait_for(
        lambda: inbox.stays_at(0, seconds=0.1) and client.xlen(keys.dead_letter_stream(STREAM)),
        seconds=5,
        what="a dead letter",
    )
    assert inbox.messages == []
    ((_, dead),) = client.xrange(keys.dead_letter_stream(STREAM))
    assert b"more than 3 times" in dead[b"reason"]


def test_an_entry_deleted_while_pending_is_forgotten(connect: Connect, redis_server: RedisServer) -> None:
    publish(connect(), "q", "a", "b")
    client = redis_server.client()
    client.xgroup_create(STREAM, keys.GROUP, id="0")
    client.xreadgroup(keys.GROUP, "dead", {STREAM: ">"})
    client.xdel(STREAM, client.xrange(STREAM)[0][0])
    inbox = Inbox(connect("c2", visibility=0.3), "q", ack=True).drain(1)
    assert inbox.bodies == ["b"]
    wait_for(lambda: inbox.stays_at(1, seconds=0.1) and not pending(redis_server), seconds=5, what="nothing pending")


def test_a_message_held_across_a_close_is_settled_later_and_not_handed_back(
    connect: Connect, redis_server: RedisServer
) -> None:
    """What stock kombu gets wrong: a task that runs while its connection breaks must not run twice."""
    connection = connect()
    publish(connection, "q", "running")
    inbox = Inbox(connection, "q").drain(1)
    (message,) = inbox.messages
    connection.release()
    other = Inbox(connect(), "q")
    assert other.stays_at(0)
    assert pending(redis_server) == 1
    message.ack()
    wait_for(lambda: not pending(redis_server), seconds=3, what="the acknowledgement")
    assert redis_server.client().xlen(STREAM) == 0


def test_a_message_that_nobody_remembers_is_handed_back_after_a_close(connect: Connect) -> None:
    connection = connect()
    publish(connection, "q", "dropped")
    inbox = Inbox(connection, "q").drain(1)
    inbox.channel.close()
    inbox.messages.clear()
    gc.collect()
    again = Inbox(connect(), "q").drain(1)
    assert again.bodies == ["dropped"]
    assert again.messages[0].delivery_info["redelivered"] is True


def test_a_flush_is_survived_by_a_waiting_consumer(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    inbox = Inbox(connection, "q", ack=True)
    publish(connection, "q", "before")
    inbox.drain(1)
    redis_server.client().flushall()
    redis_server.client().script_flush()
    publish(connect("producer"), "q", "after")
    assert inbox.drain(2).bodies == ["before", "after"]


def test_a_settled_entry_that_vanished_is_no_error(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    publish(connection, "q", "a", "b")
    inbox = Inbox(connection, "q").drain(2)
    redis_server.client().flushall()
    inbox.messages[0].ack()
    inbox.messages[1].reject(requeue=True)
    assert redis_server.client().keys("stream:*") == []


def test_a_stock_queue_of_the_same_name_is_refused_without_a_crash(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect()
    inbox = Inbox(connection, "q", ack=True)
    redis_server.client().lpush(STREAM, "a stock message")
    assert inbox.stays_at(0, seconds=1.2)
    redis_server.client().delete(STREAM)
    publish(connection, "q", "now")
    assert inbox.drain(1).bodies == ["now"]


def test_a_consumer_leaves_the_group_only_with_nothing_pending(connect: Connect, redis_server: RedisServer) -> None:
    connection = connect("leaver")
    publish(connection, "q", "a")
    inbox = Inbox(connection, "q").drain(1)
    deliveries = connection.default_channel.deliveries
    deliveries.consumer.leave([STREAM])
    assert [each["name"] for each in redis_server.client().xinfo_consumers(STREAM, keys.GROUP)] == [b"leaver"]
    inbox.messages[0].ack()
    deliveries.consumer.leave([STREAM])
    assert redis_server.client().xinfo_consumers(STREAM, keys.GROUP) == []


def test_a_wait_ends_at_once_when_a_message_comes(connect: Connect) -> None:
    connection, producer = connect(), connect("p")
    inbox = Inbox(connection, "q", ack=True)
    assert inbox.stays_at(0, seconds=0.2)
    publish(producer, "q", "x")
    began = time.monotonic()
    inbox.drain(1)
    assert time.monotonic() - began < 0.25
