"""Celery's command line on the broker URL alone, and the messages of a stock broker brought along."""

import json
from collections.abc import Callable
from typing import Any

from celery import Celery

from .conftest import Plain

AppOf = Callable[[Plain], Any]
PATIENCE = 40


def test_the_commands_work(plain: Plain, app_of: AppOf) -> None:
    """``status``, ``inspect``, ``control``, ``call``, ``result``, ``purge`` and ``report``."""
    plain.worker("one", "-c", "1")
    tasks = app_of(plain)
    assert "one@plain: OK" in plain.celery("status").stdout
    queues = json.loads(plain.celery("inspect", "active_queues", "--json").stdout)
    assert [queue["name"] for queue in queues["one@plain"]] == ["celery"]
    called = plain.celery("call", "plain_app.add", "--args", "[20, 3]")
    assert called.returncode == 0, called.stderr
    assert tasks.app.AsyncResult(called.stdout.strip()).get(timeout=PATIENCE) == 23
    assert plain.celery("result", called.stdout.strip()).stdout.strip() == "23"
    limited = plain.celery("control", "rate_limit", "plain_app.add", "100/s")
    assert "new rate limit set successfully" in limited.stdout
    for _ in range(3):
        tasks.add.apply_async((1, 1), queue="unread")
    assert "Purged 3 messages" in plain.celery("purge", "-f", "-Q", "unread").stdout
    report = plain.celery("report")
    assert report.returncode == 0
    assert "transport:redis-streams" in report.stdout


def test_waiting_messages_of_a_stock_broker_are_brought_along(plain: Plain, app_of: AppOf) -> None:
    """``celery migrate --ack-messages redis://… redis-streams://…``."""
    tasks = app_of(plain)
    with Celery("before", broker=plain.server.url, backend=plain.environment["PLAIN_BACKEND"]) as before:
        results = [before.send_task("plain_app.add", (n, 1)) for n in range(5)]
        moved = plain.celery("migrate", plain.server.url, plain.environment["PLAIN_BROKER"], "-a", "-t", "3")
        assert moved.returncode == 0, moved.stderr
        plain.worker("one", "-c", "1")
        assert [tasks.app.AsyncResult(one.id).get(timeout=PATIENCE) for one in results] == [1, 2, 3, 4, 5]
        with plain.server.client() as client:
            assert client.llen("celery") == 0
