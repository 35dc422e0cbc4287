"""Putting a process together."""

import threading
from pathlib import Path

import pytest

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.request import CommandRequest
from orchestrator.errors import InvalidSettings, StreamUnavailable
from orchestrator.runtime import Runtime
from orchestrator.services.submit import SubmitService
from orchestrator.storage.schema import check


def settings(home: Path, **more: object) -> Settings:
    values = {"home": home, "redis_url": f"unix://{home}/none.sock"} | more
    return Settings(**values)  # type: ignore[arg-type]


def test_the_embedded_database_is_there_on_first_use(tmp_path: Path) -> None:
    """Also when several processes come at once, and without Redis: a job is stored, its entry left to the leader."""
    opened: list[Runtime] = []
    chosen = settings(tmp_path / "home")
    threads = [threading.Thread(target=lambda: opened.append(open_runtime(chosen))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(opened) == 4

    service = SubmitService(opened[0])
    (job,) = service.submit([CommandRequest(argv=("true",))])
    stored = opened[1].jobs.get(job.id)

    assert stored is not None
    assert service.unpublished == 1
    assert check(chosen.database)
    for runtime in opened:
        runtime.close()


def test_nothing_is_connected_before_it_is_used(tmp_path: Path) -> None:
    """Servers may come up after the processes that use them."""
    runtime = open_runtime(settings(tmp_path, database_url="mysql+pymysql://nobody@127.0.0.1:1/none"))
    with pytest.raises(StreamUnavailable):
        runtime.wake.publish("place")
    runtime.close()


@pytest.mark.parametrize(
    ("name", "url"),
    [("database_url", "postgresql://h/d"), ("database_url", "nonsense"), ("redis_url", "http://h"), ("redis_url", "x")],
)
def test_a_url_that_is_not_supported_is_named(tmp_path: Path, name: str, url: str) -> None:
    """As a setting that is wrong, not as a library's error."""
    with pytest.raises(InvalidSettings, match=name):
        open_runtime(settings(tmp_path, **{name: url}))
