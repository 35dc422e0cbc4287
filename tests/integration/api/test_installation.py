"""What is told of the installation: hosts, GPUs, queues, health, metrics, and the API itself."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.runtime import Runtime
from tests.integration.api.conftest import client_of
from tests.support.cli_fields import FIELDS

READS_THE_DATABASE = ["/jobs", "/jobs/x", "/jobs/x/logs", "/jobs/x/why", "/jobs/x/events", "/nodes", "/gpus", "/queues"]


def test_hosts_and_their_gpus_are_listed(api: TestClient, register: Callable[[str, int], None]) -> None:
    register("alpha", 2)

    (node,) = api.get("/nodes").json()["nodes"]
    gpus = api.get("/gpus").json()["gpus"]

    assert (node["name"], node["state"], node["live"], node["pid"]) == ("alpha", "up", True, 1)
    assert node["gpus"] == gpus
    assert [gpu["uuid"] for gpu in gpus] == ["alpha-0", "alpha-1"]


def test_queues_tell_how_many_jobs_they_hold(api: TestClient) -> None:
    api.post("/jobs/submit", json={"argv": ["true"]})

    queues = {queue["name"]: queue for queue in api.get("/queues").json()["queues"]}

    assert set(queues) == {"gpu", "preloads"}
    assert sum(queues["gpu"]["jobs"].values()) == 1
    assert queues["preloads"] == {
        "name": "preloads",
        "paused": False,
        "paused_by": None,
        "most_running": None,
        "time_limit": None,
        "version": 0,
        "jobs": {},
    }


def test_the_cluster_is_described_without_passwords(runtime: Runtime, settings: Settings) -> None:
    secret = settings.model_copy(update={"redis_url": type(settings.redis_url)("redis://:hidden@127.0.0.1:1/0")})
    with client_of(dataclasses.replace(runtime, settings=secret)) as client:
        answer = client.get("/cluster")

    assert set(answer.json()) == FIELDS["status --cluster"]
    assert answer.json()["leader"] is None
    assert "hidden" not in answer.text


def test_it_is_ready_only_with_a_worker(api: TestClient, register: Callable[[str, int], None]) -> None:
    before = api.get("/readyz")
    register("alpha", 1)
    after = api.get("/readyz")

    assert before.status_code == 503
    assert before.json()["checks"] == {"database": True, "redis": True, "worker": False}
    assert (after.status_code, after.json()["status"]) == (200, "ready")


@pytest.fixture
def cut_off(settings: Settings, tmp_path: Path) -> Iterator[TestClient]:
    """An app whose database cannot be opened."""
    (tmp_path / "file").touch()
    url = type(settings.database_url)(f"sqlite:///{tmp_path / 'file' / 'gone.db'}")
    runtime = open_runtime(settings.model_copy(update={"database_url": url}))
    with client_of(runtime) as client:
        yield client
    runtime.close()


@pytest.mark.parametrize("path", [*READS_THE_DATABASE, "/cluster"])
def test_without_the_database_it_says_so_and_when_to_come_back(cut_off: TestClient, path: str) -> None:
    answer = cut_off.get(path)

    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:gpu-orchestrator:problem:store-unavailable"


def test_without_the_database_metrics_say_so(cut_off: TestClient) -> None:
    """Whoever watches learns which server is away, and still how busy this process is."""
    answer = cut_off.get("/metrics")

    assert answer.status_code == 200
    assert 'gpu_orchestrator_server_up{server="database"} 0.0' in answer.text
    assert 'gpu_orchestrator_server_up{server="redis"} 1.0' in answer.text
    assert "gpu_orchestrator_api_requests_in_progress 1.0" in answer.text
    assert "gpu_orchestrator_jobs{" not in answer.text


def test_without_the_database_nothing_is_taken_in(cut_off: TestClient) -> None:
    assert cut_off.post("/jobs/submit", json={"argv": ["true"]}).status_code == 503
    assert cut_off.get("/readyz").json()["checks"]["database"] is False
    assert cut_off.get("/healthz").status_code == 200


def test_without_redis_jobs_are_taken_in(settings: Settings) -> None:
    """What is committed is durable; the leader publishes it when Redis is back."""
    away = type(settings.redis_url)("redis://127.0.0.1:1/0")
    runtime = open_runtime(settings.model_copy(update={"redis_url": away}))
    with client_of(runtime) as client:
        assert client.post("/jobs/submit", json={"argv": ["true"]}).status_code == 201
        assert client.get("/readyz").json()["checks"]["redis"] is False
    runtime.close()


def test_every_answer_is_marked_for_browsers_and_caches(api: TestClient) -> None:
    for path in ("/jobs", "/nothing", "/healthz"):
        headers = api.get(path).headers
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")


def test_the_description_lists_every_route_with_its_problems(api: TestClient) -> None:
    document = api.get("/openapi.json").json()

    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            if path in {"/healthz", "/readyz"}:
                continue
            said = operation["responses"]
            assert {"401", "413", "422", "503"} <= set(said), (verb, path)
            for status in said.keys() - {"200", "201", "304"}:
                assert list(said[status]["content"]) == ["application/problem+json"], (verb, path, status)
    assert "409" in document["paths"]["/jobs/submit"]["post"]["responses"]
