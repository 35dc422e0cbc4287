"""Leases without a job, over HTTP."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.domain.access import Role
from orchestrator.runtime import Runtime
from orchestrator.services.tokens import TokenService
from tests.support.running import Running


def lease(api: TestClient, **body: Any) -> dict[str, Any]:
    answer = api.post("/leases", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


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


def test_an_operator_ends_a_lease_by_its_number(api: TestClient, register: Callable[[str, int], None]) -> None:
    register("alpha", 1)
    made = lease(api)

    assert api.post(f"/leases/{made['id']}/release").json()["state"] == "released"
    assert api.post("/leases/999/release").status_code == 404
    assert api.post("/leases/lease_unknown/heartbeat").status_code == 404


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
