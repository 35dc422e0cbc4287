"""A pytest plugin that points the unchanged tests of Celery and kombu at a broker and a pool.

Loaded with ``-p tests.conformance.plugin``. It starts a private redis-server before the suite's own conftest reads the
environment, gives the suite its broker by the variables that the suite knows, chooses the pool by standing in for one
fixture, and writes a line of JSON for each test. No file of the suite is changed.
"""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kombu.transport import TRANSPORT_ALIASES, resolve_transport

from orchestrator.streams.client import broker_url
from orchestrator.transport import SCHEMES, register
from tests.conformance.runner_worker import RunnerWorker
from tests.conformance.units import NO_POOL, POOLS
from tests.support.servers import RedisServer

RUNNER_POOL = "runner"
#: Stands in for the suites' own limits, some of which a loaded machine does not keep on the baseline either.
TEST_SECONDS = 300


@dataclass
class Stage:
    """What one run of a suite plays on."""

    server: RedisServer
    transport: str  # "redis" or "redis-streams"
    pool: str
    results: Path | None
    shard: tuple[int, int]
    fixtures: dict[str, str] = field(default_factory=dict)

    @property
    def broker(self) -> str:
        """The broker's URL in the spelling of the transport under test."""
        return self.server.url if self.transport == "redis" else broker_url(self.server.url)


_stage: list[Stage] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--conformance-transport", choices=["redis", "redis-streams"], default="redis")
    group.addoption("--conformance-pool", choices=[*POOLS, NO_POOL], default="prefork")
    group.addoption("--conformance-results", help="file that gets a line of JSON for each test")
    group.addoption("--conformance-shard", default="1/1", help="run every nth test: 2/4 is the second quarter")
    group.addoption("--conformance-alias", action="store_true", help="redis:// in the suite means the transport")
    group.addoption("--conformance-memory", action="store_true", help="memory:// in the suite means the transport")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    options = early_config.known_args_namespace
    number, _, count = options.conformance_shard.partition("/")
    register()
    server = RedisServer(Path(tempfile.mkdtemp(prefix="conformance-")))
    server.start()
    results = Path(options.conformance_results) if options.conformance_results else None
    stage = Stage(server, options.conformance_transport, options.conformance_pool, results, (int(number), int(count)))
    _stage.append(stage)
    os.environ |= {
        "TEST_BROKER": server.url if options.conformance_alias else stage.broker,
        "TEST_BACKEND": f"redis://127.0.0.1:{server.port}/0",  # the suite looks there for results
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(server.port),  # Celery's name for it
        "REDIS_6379_TCP": str(server.port),  # kombu's
    }
    if options.conformance_alias and stage.transport != "redis":
        TRANSPORT_ALIASES["redis"] = SCHEMES["redis-streams"]
        TRANSPORT_ALIASES["sentinel"] = SCHEMES["sentinel-streams"]
    if options.conformance_memory:
        stand_in = _on_port(resolve_transport(stage.transport), server.port)
        TRANSPORT_ALIASES["memory"] = lambda: stand_in


def pytest_unconfigure() -> None:
    while _stage:
        _stage.pop().server.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this shard's tests; shards keep parameters of one test together, as they may share what they set up."""
    for item in items:
        if item.get_closest_marker("timeout") is not None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS), append=False)
    number, count = _stage[0].shard
    if count == 1:
        return
    names = {name: index for index, name in enumerate(dict.fromkeys(item.nodeid.partition("[")[0] for item in items))}
    kept, left = [], []
    for item in items:
        (kept if names[item.nodeid.partition("[")[0]] % count == number - 1 else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: Any) -> Any:
    """Stand in for the fixtures that name the pool, and for the worker itself where it needs a process of its own."""
    stage = _stage[0]
    value: Any = None
    if fixturedef.argname == "celery_worker_pool":
        value = "threads" if stage.pool == "threads" else "prefork"
    elif fixturedef.argname == "celery_session_worker" and stage.pool == RUNNER_POOL:
        request.getfixturevalue("celery_session_app")
        value = RunnerWorker(stage.server, stage.broker).start()
        request.addfinalizer(value.stop)
    else:
        return None
    fixturedef.cached_result = (value, fixturedef.cache_key(request), None)
    return value


@pytest.fixture(autouse=True)
def conformance_empty_server(request: pytest.FixtureRequest) -> None:
    """A memory transport starts empty for each test; what stands in for it has to as well."""
    if request.config.getoption("--conformance-memory"):
        _stage[0].server.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write how each phase went; the reader puts the phases of a test together."""
    stage = _stage[0]
    if stage.results is None or (report.when != "call" and report.outcome == "passed"):
        return
    line = {"test": report.nodeid, "when": report.when, "outcome": report.outcome}
    line["expected"] = hasattr(report, "wasxfail")
    line["says"] = str(report.longrepr)[-1500:] if report.longrepr else ""
    with stage.results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _on_port(transport: Any, port: int) -> Any:
    return type("StandIn", (transport,), {"default_port": port})
