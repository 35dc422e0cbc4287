"""What a worker reads: JSON. Whoever writes to Redis sends no objects that run something when they are read."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kombu import Producer

from tests.support.cluster import Cluster
from tests.support.waiting import wait_for

from .conftest import HERE


class Bomb:
    """Makes a directory when it is read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.directory),)


def send(app: Any, queue: str, task: str, bomb: Bomb, kind: str) -> None:
    """Send a message of this kind for a task."""
    headers = {"task": task, "id": str(uuid4()), "root_id": str(uuid4()), "lang": "py"}
    more: dict[str, Any] = {"exchange": "", "routing_key": queue, "headers": headers}
    with app.connection_for_write() as connection, connection.channel() as channel:
        app.amqp.queues[queue].bind(channel).declare()
        producer = Producer(channel)
        if kind == "pickle":
            producer.publish([[bomb], {}, {}], serializer="pickle", **more)
        else:
            body = f"[[!!python/object/apply:os.mkdir [{json.dumps(str(bomb.directory))}]], {{}}, {{}}]"
            producer.publish(body, content_type="application/x-yaml", content_encoding="utf-8", **more)


@pytest.mark.parametrize("kind", ["pickle", "yaml"])
@pytest.mark.filterwarnings("ignore:Task name:UserWarning")
def test_what_is_not_json_is_refused_and_nothing_runs(cluster: Cluster, app: Any, tmp_path: Path, kind: str) -> None:
    """Neither the task nor what reading it would run, on the queues of plain tasks and of jobs; what follows runs."""
    import tasks_app as t

    places = {queue: tmp_path / f"made-by-{queue}" for queue in ("default", "gpu")}
    worker = cluster.worker("a", slots=1, gpus=1, app="tasks_app", queues="gpu,default", path=HERE)
    for (queue, place), task in zip(places.items(), ("t.plain", "t.echo"), strict=True):
        send(app, queue, task, Bomb(place), kind)
    assert t.plain.delay("json").get(timeout=30) == "json"
    assert t.echo.delay("json").get(timeout=30) == "json"

    content = {"pickle": "application/x-python-serialize", "yaml": "application/x-yaml"}[kind]
    wait_for(lambda: content in worker.tail(), within_seconds=20, describe=worker.tail)
    assert [place for place in places.values() if place.exists()] == []
    assert worker.popen.poll() is None
