"""Real Celery workers, in processes of their own, on a real server."""

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
from kombu import pools

from orchestrator.streams import keys

from .servers import HERE, RedisServer, Worker, environment_of, wait_for

STREAM = keys.stream_of("celery")
Start = Callable[..., Worker]


@pytest.fixture
def tasks(system_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The app's module, as a producer imports it."""
    for name, value in environment_of(system_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(HERE))
    sys.modules.pop("app", None)
    module = import_module("app")
    yield module
    gc.collect()  # results that nobody waits for say so to the server, while there is one
    module.app.close()
    pools.reset()
    sys.modules.pop("app", None)


def notes(server: RedisServer) -> list[str]:
    with server.client(db=1) as client:
        return [line.decode().split()[0] for line in client.lrange("notes", 0, -1)]


def pending(server: RedisServer) -> int:
    with server.client() as client:
        streams = [stream for stream in (STREAM, keys.front_stream(STREAM)) if client.exists(stream)]
        return sum(group["pending"] for stream in streams for group in client.xinfo_groups(stream))


def entries(server: RedisServer) -> int:
    with server.client() as client:
        return sum(client.xlen(stream) for stream in (STREAM, keys.front_stream(STREAM)))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_canvas_retry_and_remote_control(
    start_worker: Start, tasks: Any, system_server: RedisServer, pool: str
) -> None:
    """What people use every day works as over stock Redis."""
    from celery import chain, chord, group

    worker = start_worker("daily", "-P", pool, "-c", "2")
    assert tasks.add.delay(1, 2).get(timeout=10) == 3
    assert chain(tasks.add.s(1, 2), tasks.add.s(3))().get(timeout=10) == 6
    assert group(tasks.add.s(n, n) for n in range(10))().get(timeout=10) == [n + n for n in range(10)]
    assert chord([tasks.add.s(n, n) for n in range(10)], tasks.total.s())().get(timeout=10) == 90
    assert tasks.flaky.delay(2).get(timeout=10) == 2
    began = time.monotonic()
    assert tasks.add.apply_async((2, 2), countdown=0.5).get(timeout=10) == 4
    assert time.monotonic() - began >= 0.5
    control = tasks.app.control
    assert control.ping(timeout=0.5) == [{worker.node: {"ok": "pong"}}]
    running = tasks.slow.delay("shown", 1.5)
    wait_for(lambda: "start-shown" in notes(system_server), seconds=5, what="a running task")
    inspect = control.inspect(timeout=0.5)
    assert [request["id"] for request in inspect.active()[worker.node]] == [running.id]
    assert inspect.reserved() is not None
    assert inspect.stats()[worker.node]["broker"]["transport"] == "redis-streams"
    assert running.get(timeout=10) is False
    assert worker.stop() == 0
    assert entries(system_server) == 0
    assert "Traceback" not in worker.log.replace("Retry", "")


def test_urgent_messages_run_first(start_worker: Start, tasks: Any, system_server: RedisServer) -> None:
    for priority in (9, 0, 6, 3):
        for n in range(3):
            tasks.named.apply_async((f"{priority}-{n}",), priority=priority)
    start_worker("urgent", "-c", "1", TEST_MULTIPLIER="1")
    wait_for(lambda: len(notes(system_server)) == 12, seconds=15, what="all tasks")
    assert notes(system_server) == [f"{priority}-{n}" for priority in (0, 3, 6, 9) for n in range(3)]


def test_revoked_tasks_do_not_run_and_running_ones_can_be_ended(
    start_worker: Start, tasks: Any, system_server: RedisServer
) -> None:
    start_worker("revoking", "-c", "1")
    running = tasks.slow.delay("long", 60)
    wait_for(lambda: "start-long" in notes(system_server), seconds=10, what="a running task")
    waiting = tasks.named.delay("revoked")
    tasks.app.control.revoke(waiting.id)
    tasks.app.control.revoke(running.id, terminate=True)
    tasks.named.delay("last")
    wait_for(lambda: "last" in notes(system_server), seconds=10, what="the task behind")
    wait_for(lambda: not entries(system_server), seconds=5, what="an empty queue")
    assert notes(system_server) == ["start-long", "last"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_runs_once_although_its_worker_lost_the_connection(
    start_worker: Start, tasks: Any, system_server: RedisServer, pool: str
) -> None:
    """Also what was prefetched runs once, and the acknowledgement finds its way. Stock kombu runs the task twice."""
    start_worker("cut", "-P", pool, "-c", "1")
    result = tasks.slow.delay("cut", 2.5)
    others = [tasks.named.delay(f"behind-{n}") for n in range(6)]
    wait_for(lambda: "start-cut" in notes(system_server), seconds=10, what="a running task")
    with system_server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_kill_filter(_type="pubsub", skipme=True)
    assert result.get(timeout=20) is False
    for other in others:
        other.get(timeout=20)
    wait_for(lambda: not entries(system_server), seconds=10, what="an empty queue")
    assert sorted(notes(system_server)) == sorted(["start-cut", "end-cut", *(f"behind-{n}" for n in range(6))])


def test_a_killed_workers_task_runs_again_once(start_worker: Start, tasks: Any, system_server: RedisServer) -> None:
    victim = start_worker("victim", "-c", "1", TEST_OPTION_VISIBILITY="1.5")
    result = tasks.slow.delay("again", 1.0)
    wait_for(lambda: "start-again" in notes(system_server), seconds=10, what="a running task")
    victim.kill()
    start_worker("heir", "-c", "1", TEST_OPTION_VISIBILITY="1.5")
    assert result.get(timeout=15) is True, "the second run knows that it is one"
    wait_for(lambda: not entries(system_server), seconds=5, what="an empty queue")
    assert notes(system_server) == ["start-again", "start-again", "end-again"]


def test_long_tasks_keep_their_entries_beyond_the_visibility_time(
    start_worker: Start, tasks: Any, system_server: RedisServer
) -> None:
    """Also in the solo pool, whose event loop stands still while a task runs."""
    start_worker("solo", "-P", "solo", TEST_OPTION_VISIBILITY="3")
    start_worker("rival", "-c", "1", TEST_OPTION_VISIBILITY="3")
    results = [tasks.slow.delay(f"long-{n}", 8.0) for n in range(2)]
    assert [result.get(timeout=40) for result in results] == [False, False]
    assert sorted(notes(system_server)) == ["end-long-0", "end-long-1", "start-long-0", "start-long-1"]


def test_what_a_busy_solo_worker_has_read_stays_its_own(
    start_worker: Start, tasks: Any, system_server: RedisServer
) -> None:
    """Both tasks come with one read; the second waits, unlooked at, for as long as the first runs."""
    results = [tasks.slow.delay(f"long-{n}", 5.0) for n in range(2)]
    start_worker("solo", "-P", "solo", TEST_OPTION_VISIBILITY="2")
    wait_for(lambda: "start-long-0" in notes(system_server), seconds=20, what="a running task")
    start_worker("rival", "-c", "1", TEST_OPTION_VISIBILITY="2")
    assert [result.get(timeout=40) for result in results] == [False, False]
    assert notes(system_server) == ["start-long-0", "end-long-0", "start-long-1", "end-long-1"]


def test_a_lost_child_process_hands_its_task_back(start_worker: Start, tasks: Any, system_server: RedisServer) -> None:
    start_worker("children", "-c", "1")
    assert tasks.lost.delay().get(timeout=15) == "second"
    wait_for(lambda: not entries(system_server), seconds=5, what="an empty queue")


def test_a_worker_survives_a_flush_and_an_empty_restart(
    start_worker: Start, tasks: Any, system_server: RedisServer
) -> None:
    worker = start_worker("flushed", "-c", "1")
    assert tasks.add.delay(1, 1).get(timeout=10) == 2
    with system_server.client() as client:
        client.flushdb()
        client.script_flush()
    assert tasks.add.delay(2, 2).get(timeout=10) == 4
    wait_for(lambda: not entries(system_server), seconds=5, what="an empty queue")
    system_server.stop(signal.SIGKILL)
    system_server.start()
    wait_for(lambda: worker.log.count("Connected to") >= 2, seconds=20, what="a reconnect")
    tasks.named.delay("after")
    wait_for(lambda: notes(system_server) == ["after"], seconds=20, what="a task after the restart")
    assert worker.stop() == 0


def test_a_warm_shutdown_finishes_acknowledges_and_hands_back(
    start_worker: Start, tasks: Any, system_server: RedisServer
) -> None:
    """No acknowledgement is left in a batch, and what was only prefetched is another worker's at once."""
    worker = start_worker("leaving", "-c", "1", TEST_MULTIPLIER="8")
    running = tasks.slow.delay("last", 1.5)
    wait_for(lambda: "start-last" in notes(system_server), seconds=10, what="a running task")
    behind = [tasks.named.delay(f"behind-{n}") for n in range(12)]
    wait_for(lambda: pending(system_server) == 8, seconds=5, what="a full prefetch")
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.process.wait(20) == 0
    assert running.get(timeout=1) is False
    done = len([name for name in notes(system_server) if name.startswith("behind")])
    assert pending(system_server) == 0
    assert entries(system_server) == 12 - done
    start_worker("next", "-c", "1")
    for result in behind:
        result.get(timeout=10)
    assert sorted(notes(system_server)) == sorted(["start-last", "end-last", *(f"behind-{n}" for n in range(12))])


def test_an_undecodable_entry_reaches_no_worker(start_worker: Start, tasks: Any, system_server: RedisServer) -> None:
    with system_server.client() as client:
        client.xadd(STREAM, {"m": b"\x80garbage"})
        client.xadd(STREAM, {"nonsense": "1", "more": "2"})
    worker = start_worker("poisoned", "-c", "1")
    assert tasks.add.delay(1, 1).get(timeout=10) == 2
    with system_server.client() as client:
        assert client.xlen(keys.dead_letter_stream(STREAM)) == 2
    wait_for(lambda: not entries(system_server), seconds=5, what="an empty queue")
    assert worker.process.poll() is None


def test_two_workers_share_a_queue_and_lose_nothing(
    start_worker: Start, tasks: Any, system_server: RedisServer
) -> None:
    for name in ("left", "right"):
        start_worker(name, "-c", "1")
    for n in range(400):
        tasks.named.delay(f"t{n}")
    wait_for(lambda: len(notes(system_server)) >= 400, seconds=20, what="all tasks")
    wait_for(lambda: not entries(system_server), seconds=5, what="an empty queue")
    assert sorted(notes(system_server)) == sorted(f"t{n}" for n in range(400))
    with system_server.client(db=1) as client:
        assert len({line.split()[1] for line in client.lrange("notes", 0, -1)}) == 2
