"""Leases without a job, over HTTP."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.domain.access import Role
from orchestrator.domain.adhoc import LeaseRequest
from orchestrator.errors import LeaseLost, NoGpuFree
from orchestrator.runtime import Runtime
from orchestrator.services.adhoc import LeaseService
from orchestrator.services.tokens import TokenService
from orchestrator.testing.clock import FakeClock
from tests.support.running import Running, confirming
from tests.support.waiting import wait_for


@pytest.fixture
def hosts(runtime: Runtime) -> Iterator[None]:
    """Hosts that confirm every lease."""
    with confirming(runtime):
        yield


def lease(api: TestClient, **body: Any) -> dict[str, Any]:
    answer = api.post("/leases", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


@pytest.mark.usefixtures("hosts")
def test_a_lease_lives_by_its_heartbeats_and_ends_with_its_release(
    api: TestClient, register: Callable[[str, int], None]
) -> None:
    register("alpha", 2)
    made = lease(api, gpus=2, ttl_seconds=30, name="notebook")
    listed = api.get("/leases").json()["leases"]
    beat = api.post(f"/leases/{made['token']}/heartbeat").json()
    released = api.post(f"/leases/{made['token']}/release").json()

    assert (made["node"], made["gpus"], made["fencing_token"]) == ("alpha", ["alpha-0", "alpha-1"], made["id"])
    assert (made["renew_seconds"], made["trust_seconds"]) == (10, 24)
    assert [one["name"] for one in listed] == ["notebook"]
    assert made["token"] not in api.get("/leases").text
    assert beat["expires_at"] > made["expires_at"]
    assert (released["state"], api.post(f"/leases/{made['token']}/release").json()["state"]) == ("released",) * 2
    lost = api.post(f"/leases/{made['token']}/heartbeat")
    assert (lost.status_code, lost.json()["type"]) == (409, "urn:gpu-orchestrator:problem:lease-lost")
    assert api.get("/leases").json()["leases"] == []
    assert len(api.get("/leases?ended=true").json()["leases"]) == 1


@pytest.mark.usefixtures("hosts")
def test_what_is_not_free_now_says_so_of_each_host(api: TestClient, register: Callable[[str, int], None]) -> None:
    register("alpha", 1)
    lease(api)
    busy = api.post("/leases", json={"gpus": 1})
    never = api.post("/leases", json={"gpus": 3})

    assert (busy.status_code, busy.json()["type"]) == (409, "urn:gpu-orchestrator:problem:no-gpu-free")
    assert busy.json()["faults"] == ["alpha has 0 of 1 such GPUs free"]
    assert (never.status_code, never.json()["type"]) == (422, "urn:gpu-orchestrator:problem:unsatisfiable-request")
    assert api.post("/leases", json={"ttl_seconds": 1}).status_code == 422
    assert api.post("/leases", json={"gpus": 0}).status_code == 422


@pytest.mark.usefixtures("hosts")
def test_waiting_ends_when_a_gpu_becomes_free(api: TestClient, register: Callable[[str, int], None]) -> None:
    register("alpha", 1)
    first = lease(api)
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(api.post("/leases", json={"wait_seconds": 30})))
    waiting.start()
    time.sleep(0.3)
    assert not answers
    api.post(f"/leases/{first['token']}/release")
    waiting.join(30)
    assert answers[0].status_code == 201


@pytest.mark.usefixtures("hosts")
def test_an_operator_ends_a_lease_by_its_number(api: TestClient, register: Callable[[str, int], None]) -> None:
    register("alpha", 1)
    made = lease(api)

    assert api.post(f"/leases/{made['id']}/release").json()["state"] == "released"
    assert api.post("/leases/999/release").status_code == 404
    assert api.post("/leases/lease_unknown/heartbeat").status_code == 404


@pytest.mark.usefixtures("hosts")
def test_a_lease_is_kept_from_jobs_and_in_safe_mode_from_everybody(
    api: TestClient, runtime: Runtime, register: Callable[[str, int], None]
) -> None:
    register("alpha", 1)
    lease(api)
    job = api.post("/jobs/submit", json={"argv": ["true"], "gpus": 1}).json()["id"]
    with pytest.raises(AssertionError):
        Running(runtime, job, gpus=("alpha-0",))
    api.patch("/policy", json={"safe_mode": True})
    assert api.post("/leases", json={}).json()["faults"] == ["safe mode: no lease is granted"]


@pytest.mark.usefixtures("hosts")
def test_a_token_is_in_no_audit_line_and_in_no_log(
    api: TestClient, runtime: Runtime, register: Callable[[str, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    register("alpha", 1)
    made = lease(api)
    with caplog.at_level(logging.DEBUG):
        api.post(f"/leases/{made['token']}/heartbeat")
        api.post(f"/leases/{made['token']}/release")

    audit = api.get("/audit").text
    assert "/leases/…/release" in audit
    assert made["token"] not in audit
    assert made["token"] not in "".join(r.getMessage() for r in caplog.records if not r.name.startswith("httpx"))


@pytest.mark.usefixtures("hosts")
def test_the_same_key_is_given_the_same_lease_under_a_new_token(
    api: TestClient, register: Callable[[str, int], None]
) -> None:
    """For who did not hear the first answer; nobody else could have had the GPU in between."""
    register("alpha", 1)
    key = {"Idempotency-Key": "nb"}
    first = api.post("/leases", json={"ttl_seconds": 30}, headers=key)
    again = api.post("/leases", json={"ttl_seconds": 30}, headers=key)
    other = api.post("/leases", json={"ttl_seconds": 60}, headers=key)

    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert other.json()["type"] == "urn:gpu-orchestrator:problem:idempotency-conflict"
    assert (again.json()["id"], again.json()["gpus"]) == (first.json()["id"], ["alpha-0"])
    assert again.json()["token"] != first.json()["token"]
    assert api.post(f"/leases/{first.json()['token']}/heartbeat").status_code == 404
    assert api.post(f"/leases/{again.json()['token']}/release").json()["state"] == "released"
    assert api.post("/leases", json={"ttl_seconds": 60}, headers=key).status_code == 201


def test_a_lease_is_told_when_its_host_has_confirmed_it(
    api: TestClient, runtime: Runtime, register: Callable[[str, int], None]
) -> None:
    """The host is woken for that; until then the lease is kept, and everybody sees that it is not ready."""
    register("alpha", 1)
    woken: list[tuple[str, Mapping[str, Any]]] = []
    listener = runtime.wake.listen(lambda kind, data: woken.append((kind, data)))
    wait_for(listener.subscribed.is_set, within_seconds=20, describe="the subscription")
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(lease(api)))
    asking.start()
    wait_for(lambda: ("lend", {"node": "alpha"}) in woken, within_seconds=20, describe="the wake message")
    listener.stop()
    (kept,) = api.get("/leases").json()["leases"]
    assert (kept["state"], kept["ready_at"], answers) == ("active", None, [])

    runtime.leases.confirm(kept["id"], None)
    asking.join(30)
    assert answers[0]["ready_at"] is not None
    assert answers[0]["expires_at"] > kept["expires_at"], "its life begins when it is told"


def test_a_lease_that_its_host_refuses_is_released_and_the_reason_told(
    api: TestClient, runtime: Runtime, register: Callable[[str, int], None]
) -> None:
    register("alpha", 1)
    with confirming(runtime, "alpha-0 has 9000 MiB in use that no lease explains"):
        refused = api.post("/leases", json={})

    assert (refused.status_code, refused.json()["type"]) == (409, "urn:gpu-orchestrator:problem:no-gpu-free")
    assert refused.json()["faults"] == ["alpha: alpha-0 has 9000 MiB in use that no lease explains"]
    assert runtime.leases.leases() == []


def test_a_lease_is_kept_alive_until_its_host_has_had_its_time(
    runtime: Runtime, register: Callable[[str, int], None]
) -> None:
    """Renewed while it is waited for; then the host is taken for dead, and the GPU is given back."""
    register("alpha", 1)
    clock = FakeClock()
    service = LeaseService(replace(runtime, clock=clock))
    handover = service.take(LeaseRequest(gpus=1, ttl_seconds=30))
    renewals = lambda: runtime.leases.leases()[0].heartbeat_at  # noqa: E731
    first = renewals()
    clock.advance(timedelta(seconds=9))
    assert (service.settle(handover), renewals()) == (None, first)
    clock.advance(timedelta(seconds=2))
    assert service.settle(handover) is None
    assert renewals() > first
    clock.advance(timedelta(seconds=14))

    with pytest.raises(NoGpuFree, match="alpha: its worker did not confirm in 25 s that alpha-0 is free"):
        service.settle(handover)
    assert runtime.leases.leases() == []
    with pytest.raises(LeaseLost):
        service.settle(handover)


@pytest.mark.usefixtures("hosts")
def test_a_revoked_token_gets_no_lease_that_it_waits_for(
    api: TestClient, runtime: Runtime, register: Callable[[str, int], None]
) -> None:
    """The GPU becomes free after it was revoked."""
    register("alpha", 1)
    held = lease(api, ttl_seconds=60)
    tokens = TokenService(runtime.access, runtime.clock)  # of another process
    _token, secret = tokens.create("gone", role=Role.OPERATOR, by="test")
    headers = {"Authorization": f"Bearer {secret}"}
    assert api.get("/whoami", headers=headers).json()["name"] == "gone"  # from here on it is trusted for a while

    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(api.post, "/leases", json={"wait_seconds": 30}, headers=headers)
        tokens.revoke("gone", by="test")
        answer = waiting.result(timeout=60)
    api.post(f"/leases/{held['token']}/release")

    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (401, "unauthenticated")
    assert api.get("/leases").json()["leases"] == []
