"""A plain Celery app adopts the transport with its broker URL alone: no import, no job, no lease."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from .conftest import Plain, pool_arguments

POOLS = ("prefork", "threads", "solo", "gevent")


def test_every_pool_runs_tasks_on_the_broker_url_alone(plain: Plain, app_of: Callable[[Plain], Any]) -> None:
    for pool in POOLS:
        plain.start_worker(pool, *pool_arguments(pool), "-Q", pool)
    plain.wait_ready(*POOLS)
    tasks = app_of(plain)
    for pool in POOLS:
        assert tasks.where.apply_async(queue=pool).get(timeout=30) == f"{pool}@plain"
        results = [tasks.add.apply_async((n, 1), queue=pool) for n in range(20)]
        assert [result.get(timeout=30) for result in results] == [n + 1 for n in range(20)]
    answers = tasks.app.control.ping(timeout=5, limit=len(POOLS))
    assert {name for answer in answers for name in answer} == {f"{pool}@plain" for pool in POOLS}
    for process in plain.processes:
        process.terminate()
    assert [process.wait(40) for process in plain.processes] == [0] * len(POOLS)


def test_a_program_of_kombu_alone_knows_the_scheme(plain: Plain) -> None:
    program = (
        "import os\n"
        "from kombu import Connection, Queue\n"
        "with Connection(os.environ['PLAIN_BROKER']) as connection:\n"
        "    queue = connection.SimpleQueue(Queue('bare', routing_key='bare'))\n"
        "    queue.put({'a': 1})\n"
        "    print(queue.get(timeout=10).payload, connection.transport.driver_type)\n"
        "    queue.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "{'a': 1} redis", done.stderr
