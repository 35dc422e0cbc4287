"""Exchanges, queues and prefetch that change while workers run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kombu import Exchange

from tests.support.waiting import wait_for

from .conftest import Plain

AppOf = Callable[[Plain], Any]
PATIENCE = 40


def wait_until_consumed(control: Any, node: str, queue: str) -> None:
    """Celery answers before it has declared the queue; what is published meanwhile reaches nobody."""

    def consumed() -> bool:
        queues = (control.inspect([node], timeout=5, limit=1).active_queues() or {}).get(node, ())
        return queue in {one["name"] for one in queues}

    wait_for(consumed, within_seconds=PATIENCE, describe=f"{node} consuming {queue}")


def test_exchanges_of_each_type_reach_the_queues_that_are_bound(plain: Plain, app_of: AppOf, tmp_path: Path) -> None:
    """The queues are added, and in the end one is taken away, by remote control."""
    for node in ("one", "two"):
        plain.start_worker(node, "-c", "1")
    plain.wait_ready("one", "two")
    tasks, path = app_of(plain), tmp_path / "lines"
    control = tasks.app.control
    bindings = {
        Exchange("orders", type="direct"): [("one", "paid", "paid"), ("two", "sent", "sent")],
        Exchange("news", type="topic"): [("one", "sports", "*.sport"), ("two", "europe", "eu.#")],
        Exchange("everyone", type="fanout"): [("one", "everyone.one", "all"), ("two", "everyone.two", "all")],
    }
    for exchange, bound in bindings.items():
        for node, queue, key in bound:
            answer = control.add_consumer(
                queue, exchange.name, exchange.type, key, destination=[f"{node}@plain"], reply=True, timeout=10, limit=1
            )
            assert answer == [{f"{node}@plain": {"ok": f"add consumer {queue}"}}]
            wait_until_consumed(control, f"{node}@plain", queue)
    orders, news, everyone = bindings

    def publish(exchange: Exchange, key: str, text: str) -> None:
        tasks.sign.apply_async(
            (str(path), text), exchange=exchange.name, exchange_type=exchange.type, routing_key=key, declare=[exchange]
        )

    def signed() -> set[str]:
        return set(path.read_text().split()) if path.exists() else set()

    def hear(*expected: str) -> None:
        wait_for(lambda: set(expected) <= signed(), within_seconds=PATIENCE, describe=lambda: f"{expected}: {signed()}")

    publish(orders, "paid", "direct-1")
    publish(orders, "sent", "direct-2")
    publish(news, "us.sport", "topic-1")
    publish(news, "eu.politics.fr", "topic-2")
    publish(news, "eu.sport", "topic-both")
    publish(news, "us.politics", "topic-nobody")
    hear("one:direct-1", "two:direct-2", "one:topic-1", "two:topic-2", "one:topic-both", "two:topic-both")
    publish(everyone, "all", "fanout")
    hear("one:fanout", "two:fanout")
    assert len(path.read_text().split()) == len(signed()) == 8
    control.cancel_consumer("paid", destination=["one@plain"], reply=True, timeout=10, limit=1)
    publish(orders, "paid", "stays")
    publish(news, "us.sport", "behind")
    hear("one:behind")
    with plain.server.client() as client:
        assert client.xlen("stream:orchestrator:paid") == 1
    assert "one:stays" not in signed()


def test_prefetch_follows_the_pool_and_tasks_with_an_eta(plain: Plain, app_of: AppOf) -> None:
    """What waits for its time takes no prefetch, and a pool that grows takes more."""
    plain.conf |= {"worker_prefetch_multiplier": 1}
    plain.worker("first", "-c", "1")
    tasks = app_of(plain)
    control = tasks.app.control

    def prefetch() -> int:
        stats = control.inspect(destination=["first@plain"], timeout=10, limit=1).stats()
        return int(stats["first@plain"]["prefetch_count"])

    assert prefetch() == 1
    later = [tasks.add.apply_async((n, n), countdown=600) for n in range(5)]
    assert tasks.add.delay(1, 1).get(timeout=PATIENCE) == 2
    scheduled = control.inspect(destination=["first@plain"], timeout=10, limit=1).scheduled()["first@plain"]
    assert {one["request"]["id"] for one in scheduled} == {result.id for result in later}
    assert prefetch() == 6
    control.revoke([result.id for result in later])
    answer = control.pool_grow(2, destination=["first@plain"], reply=True, timeout=10, limit=1)
    assert answer == [{"first@plain": {"ok": "pool will grow"}}]
    wait_for(lambda: prefetch() == 8, within_seconds=PATIENCE, describe=lambda: f"2 more, not {prefetch()}")
    naps = [tasks.nap.delay(600) for _ in range(3)]
    wait_for(
        lambda: len(control.inspect(timeout=10, limit=1).active()["first@plain"]) == 3,
        within_seconds=PATIENCE,
        describe="three at once",
    )
    control.terminate([nap.id for nap in naps])
