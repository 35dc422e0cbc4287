"""A command's secrets, and a task's arguments that look like some, through a real worker."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis

from orchestrator.domain.job import FailureClass, JobState
from orchestrator.streams.keys import dead_letter_stream, stream_of
from tests.support.cluster import Cluster
from tests.support.collector import Collector
from tests.support.flower import Flower
from tests.support.waiting import wait_for

from .conftest import HERE

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CANARY = "canary-7d1f0a52c9"
PROGRAM = "import os, hashlib; v = os.environ['HF_TOKEN']; print('is', v, hashlib.sha256(v.encode()).hexdigest())"


def test_a_secret_reaches_the_job_and_nothing_else(cluster: Cluster, redis_url: str) -> None:
    """Not the database, Redis, the journals, the logs, the job's output, nor what ps shows."""
    keep = cluster.home / "secrets" / "default"
    keep.mkdir(parents=True)
    (keep / "HF_TOKEN").write_text(CANARY + "\n")
    (keep / "HF_TOKEN").chmod(0o600)
    cluster.worker("a")

    job_id = cluster.command(sys.executable, "-c", PROGRAM, secrets=("HF_TOKEN",))
    missing = cluster.command("true", secrets=("HF_TOKEN", "NOT_THERE"), max_attempts=3)
    cluster.wait_for_state(job_id, JobState.SUCCEEDED)
    failed = cluster.wait_for_state(missing, JobState.FAILED)

    assert cluster.output(job_id).split() == ["is", "***", hashlib.sha256(CANARY.encode()).hexdigest()]
    assert failed.failure_class is FailureClass.POISON
    assert failed.error == "secret NOT_THERE of tenant default is not on this host (No such file or directory)"
    assert cluster.runtime.jobs.get_payload(job_id) is not None
    assert (cluster.runtime.jobs.get_payload(job_id) or {})["secrets"] == ["HF_TOKEN"]
    client = redis.Redis.from_url(redis_url)
    assert not [key for key in client.scan_iter() if CANARY.encode() in (client.dump(key) or b"")]
    kept = [path for path in cluster.home.rglob("*") if path.is_file() and path.parent != keep]
    assert len(kept) >= 3
    assert [path for path in kept if CANARY.encode() in path.read_bytes()] == []
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True, timeout=30).stdout
    assert CANARY.encode() not in shown


@contextmanager
def listening(app: Any) -> Iterator[list[dict[str, Any]]]:
    """Give the events that Celery's workers send meanwhile."""
    heard: list[dict[str, Any]] = []
    ready, done = threading.Event(), threading.Event()

    def listen() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": heard.append})
            with receiver.consumer_context() as (own, _channel, _consumers):
                ready.set()
                while not done.is_set():
                    with suppress(TimeoutError):
                        own.drain_events(timeout=0.2)

    thread = threading.Thread(target=listen)
    thread.start()
    assert ready.wait(20)
    try:
        yield heard
    finally:
        done.set()
        thread.join(20)


@pytest.mark.filterwarnings("ignore:Task name:UserWarning")
def test_no_observer_sees_what_is_hidden(cluster: Cluster, app: Any, collector: Collector, redis_url: str) -> None:
    """Celery's events, Flower, spans, logs and dead letters show that a job is there, and not what it was given."""
    import tasks_app as t

    keep = cluster.home / "secrets" / "default"
    keep.mkdir(parents=True)
    (keep / "HF_TOKEN").write_text(CANARY + "\n")
    (keep / "HF_TOKEN").chmod(0o600)
    worker = cluster.worker("a", app="tasks_app", queues="gpu,default", path=HERE, traces=True)
    beat = cluster.beat()
    flower = Flower(cluster)
    values = (f"hf_{CANARY}", [CANARY], "x" * 100 + CANARY)
    named = {"api_key": CANARY, "config": {"inner": CANARY}}
    headers = {"traceparent": TRACEPARENT}
    with listening(app) as events:
        counted = t.count.apply_async(values, named, headers=headers)
        assert counted.get(timeout=30) == 5
        buried = cluster.task("no.such.task", *values, kwargs=named, traceparent=TRACEPARENT)
        cluster.wait_for_state(buried, JobState.DEAD_LETTER)
        program = cluster.command(sys.executable, "-c", PROGRAM, secrets=("HF_TOKEN",), traceparent=TRACEPARENT)
        cluster.wait_for_state(program, JobState.SUCCEEDED)
        done = {("task-succeeded", counted.id), ("task-succeeded", program)}
        wait_for(
            lambda: done <= {(one["type"], one.get("uuid")) for one in events},
            within_seconds=20,
            describe=lambda: f"{events}",
        )
    wait_for(
        lambda: {counted.id, program} <= flower.get("/api/tasks").keys(),
        within_seconds=20,
        describe=flower.process.tail,
    )
    client = redis.Redis.from_url(redis_url)
    letters = dead_letter_stream(stream_of("gpu"))
    wait_for(lambda: client.xlen(letters), within_seconds=20, describe=beat.tail)
    shown = [flower.page("/api/tasks"), flower.page(f"/api/task/info/{counted.id}"), flower.page(f"/task/{counted.id}")]
    worker.stop(signal.SIGTERM)

    (received,) = (one for one in events if one["type"] == "task-received" and one["uuid"] == counted.id)
    assert received["args"] == "(***, <list of 1>, '" + "x" * 59 + "'…)"
    assert received["kwargs"] == "{'api_key': ***, 'config': <dict of 1>}"
    assert "hf_" not in shown[1]
    assert "***" in shown[1]
    seen = {
        "events": json.dumps(events, default=str),
        "flower": "".join(shown),
        "spans": "".join(str(span) for _, span in collector.spans),
        "letters": repr(client.xrange(letters)) + repr(cluster.runtime.letters.get(buried)),
        "logs": cluster.logs() + "".join(process.log.read_text(errors="replace") for process in cluster.processes),
    }
    assert {span.name for _, span in collector.spans} >= {"queue", "claim", "run", "finish"}
    assert buried in seen["letters"]
    assert [where for where, text in seen.items() if CANARY in text] == []
