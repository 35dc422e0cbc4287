"""No visibility timeout: a task is delivered once while its worker lives, and again soon after its worker died."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from tests.support.waiting import wait_for

from .conftest import Plain, pool_arguments

AppOf = Callable[[Plain], Any]
PATIENCE = 60
POOLS = ("prefork", "threads", "solo", "gevent")


def lines(path: Path) -> Counter[str]:
    """Count how often each task has started."""
    return Counter(path.read_text().split()) if path.exists() else Counter()


def test_a_task_of_any_length_is_delivered_once_while_its_worker_lives(
    plain: Plain, app_of: AppOf, tmp_path: Path
) -> None:
    """On every pool, for three times as long as a silent worker's messages stay its own, beside an idle worker."""
    plain.conf |= {"broker_transport_options": {"visibility": 3}, "worker_prefetch_multiplier": 1}
    for pool in POOLS:
        plain.start_worker(pool, *pool_arguments(pool), "-Q", pool)
    plain.wait_ready(*POOLS)
    tasks, path = app_of(plain), tmp_path / "lines"
    results = [tasks.leave_line.apply_async((str(path), 9.0), queue=pool) for pool in POOLS]
    wait_for(lambda: len(lines(path)) == len(POOLS), within_seconds=PATIENCE, describe="every task runs")
    plain.worker("rival", "-c", "4", "-Q", ",".join(POOLS))
    assert [result.get(timeout=PATIENCE) for result in results] == [[False, False]] * len(POOLS)
    assert lines(path) == Counter(result.id for result in results)


def pending(client: Any) -> int:
    """Return how many entries are owned; none while no worker has made the group."""
    try:
        return int(client.xpending("stream:orchestrator:celery", "orchestrator")["pending"])
    except ResponseError:
        return 0


def test_what_a_dead_worker_had_is_delivered_again_and_says_so(plain: Plain, app_of: AppOf, tmp_path: Path) -> None:
    """What ran runs again, what was only prefetched runs for the first time; both were delivered before."""
    plain.conf |= {"broker_transport_options": {"visibility": 2}, "worker_prefetch_multiplier": 4}
    victim = plain.worker("victim", "-c", "1")
    tasks, path = app_of(plain), tmp_path / "lines"
    started = tasks.leave_line.delay(str(path), 600)
    prefetched = [tasks.leave_line.delay(str(path), 0) for _ in range(3)]
    with plain.server.client() as client:
        wait_for(
            lambda: pending(client) == 4 and lines(path),
            within_seconds=PATIENCE,
            describe="one task runs, three are prefetched",
        )
    victim.kill()
    victim.wait(20)
    plain.worker("heir", "-c", "2")
    assert [result.get(timeout=PATIENCE) for result in prefetched] == [[True, True]] * 3
    wait_for(lambda: lines(path)[started.id] == 2, within_seconds=PATIENCE, describe="what ran runs again")
    assert lines(path) == Counter([started.id, started.id, *(result.id for result in prefetched)])
