"""The publisher and the wake channel on real servers."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.domain.entry import JobEntry
from orchestrator.errors import StreamUnavailable
from orchestrator.streams import keys
from orchestrator.streams.client import broker_url, connect, probe, redis_url
from orchestrator.streams.entries import decode_fields
from orchestrator.streams.publisher import RedisStreamPublisher
from orchestrator.streams.wake import RedisWake, WakeListener

from .servers import RedisServer, wait_for


def job(name: str, queue: str = "gpu", node: str | None = None) -> JobEntry:
    return JobEntry(name, 1, "task", queue, node, {"argsrepr": "()"})


def test_entries_are_published_in_order_to_their_streams(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    ids = RedisStreamPublisher(client).publish([job("a"), job("b", node="h1"), job("c"), job("d", queue="preloads")])
    stream = keys.stream_of("gpu")
    assert [entry_id.decode() for entry_id, _ in client.xrange(stream)] == [ids[0], ids[2]]
    assert [decode_fields(fields) for _, fields in client.xrange(stream)] == [job("a"), job("c")]
    assert client.xrange(keys.node_stream(stream, "h1"))[0][0].decode() == ids[1]
    assert client.xrange(keys.stream_of("preloads"))[0][0].decode() == ids[3]


def test_publishing_nothing_asks_nobody() -> None:
    publisher = RedisStreamPublisher(connect("unix:///nonexistent.sock"))
    assert publisher.publish([]) == []
    assert publisher.exist([]) == []
    assert publisher.missing_streams([]) == []


def test_an_entry_exists_until_it_is_acknowledged(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    publisher = RedisStreamPublisher(client)
    entries = [job("a"), job("b", node="h1")]
    known = list(zip(entries, publisher.publish(entries), strict=True))
    assert publisher.exist([*known, (job("c"), "1-1")]) == [True, True, False]
    client.xdel(keys.stream_of("gpu"), known[0][1])
    assert publisher.exist(known) == [False, True]


def test_missing_streams_are_named_once_and_made(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    publisher = RedisStreamPublisher(client)
    queues = ["gpu", "preloads"]
    assert publisher.missing_streams(queues) == queues
    assert publisher.missing_streams(queues) == []
    client.delete(keys.stream_of("gpu"))
    assert publisher.missing_streams(queues) == ["gpu"]


def test_a_flush_is_noticed_although_consumers_made_the_groups_anew(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    publisher = RedisStreamPublisher(client)
    publisher.missing_streams(["gpu"])
    client.flushall()
    client.xgroup_create(keys.stream_of("gpu"), keys.GROUP, id="0", mkstream=True)
    assert publisher.missing_streams(["gpu"]) == ["gpu"]
    assert publisher.missing_streams(["gpu"]) == []


def test_depth_counts_what_nobody_was_delivered(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    publisher = RedisStreamPublisher(client)
    publisher.missing_streams(["gpu"])
    publisher.publish([job(str(n)) for n in range(5)])
    client.xreadgroup(keys.GROUP, "c", {keys.stream_of("gpu"): ">"}, count=2)
    assert publisher.depth(["gpu", "none"]) == {"gpu": 3, "none": 0}


def test_a_dead_letter_keeps_its_content_and_reason(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    RedisStreamPublisher(client).dead_letter("gpu", "the-id", "no such task")
    ((_, fields),) = client.xrange(keys.dead_letter_stream(keys.stream_of("gpu")))
    assert fields == {b"stream": keys.stream_of("gpu").encode(), b"reason": b"no such task", b"content": b"the-id"}


def test_a_prefix_stands_before_every_key(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    publisher = RedisStreamPublisher(client, prefix="t:")
    publisher.missing_streams(["gpu"])
    publisher.publish([job("a")])
    publisher.dead_letter("gpu", "x", "y")
    assert publisher.depth(["gpu"]) == {"gpu": 1}
    assert all(key.startswith(b"t:") for key in client.keys("*"))


def test_a_server_that_is_away_is_unavailable() -> None:
    client = connect("unix:///nonexistent.sock", timeout=0.5)
    publisher, wake = RedisStreamPublisher(client), RedisWake(client)
    for act in (
        lambda: publisher.publish([job("a")]),
        lambda: publisher.exist([(job("a"), "1-1")]),
        lambda: publisher.missing_streams(["gpu"]),
        lambda: publisher.depth(["gpu"]),
        lambda: publisher.dead_letter("gpu", "x", "y"),
        lambda: wake.publish("placed"),
    ):
        with pytest.raises(StreamUnavailable):
            act()


def test_both_spellings_of_a_url_reach_the_server(redis_server: RedisServer) -> None:
    for url in (redis_server.url, broker_url(redis_server.url), redis_url(broker_url(redis_server.url))):
        assert connect(url).ping()
    assert probe(connect(redis_server.url)).version >= (6, 2)


class Heard:
    """Collects what a listener calls back with."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Mapping[str, Any]]] = []
        self.thread: threading.Thread | None = None

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        self.thread = threading.current_thread()
        self.messages.append((kind, data))
        if kind == "fail":
            raise RuntimeError("the callback's own")


def test_listeners_hear_what_is_published_and_survive_nonsense(redis_server: RedisServer) -> None:
    heard, client = Heard(), connect(redis_server.url)
    listener = WakeListener(redis_server.url, heard)
    listener.start()
    try:
        assert listener.subscribed.wait(5)
        for raw in (b"\xff", b"[]", b"{}", b'{"kind": 5}'):
            client.publish(keys.WAKE, raw)
        wake = RedisWake(client)
        wake.publish("fail")
        wake.publish("placed", queue="gpu", seqs=[1, 2])
        wait_for(lambda: len(heard.messages) == 2, seconds=5, what="two messages")
        assert heard.messages[1] == ("placed", {"queue": "gpu", "seqs": [1, 2]})
        assert heard.thread is not threading.current_thread()
        assert listener.malformed == 4
    finally:
        listener.stop()


def test_a_listener_comes_back_after_its_connection_is_cut(redis_server: RedisServer) -> None:
    heard, client = Heard(), connect(redis_server.url)
    listener = WakeListener(redis_server.url, heard)
    listener.start()
    try:
        assert listener.subscribed.wait(5)
        client.client_kill_filter(_type="pubsub")
        wake = RedisWake(client)
        wait_for(lambda: wake.publish("again") or heard.messages, seconds=5, what="a message after the cut")
        assert heard.messages[0] == ("again", {})
    finally:
        listener.stop()
        listener.stop()
