"""Tokens over HTTP: made, listed, used, revoked."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.runtime import Runtime

PROBLEM = "urn:gpu-orchestrator:problem:"
INSTALLATION = {"Authorization": "Bearer s3cret"}
CI = {"name": "ci", "role": "submitter", "tenant": "blue"}


@pytest.fixture
def api(runtime: Runtime) -> Iterator[TestClient]:
    with TestClient(create_app(runtime, token="s3cret"), raise_server_exceptions=False) as client:
        client.headers.update(INSTALLATION)
        yield client


def who(api: TestClient, secret: str) -> Any:
    return api.get("/whoami", headers={"Authorization": f"Bearer {secret}"})


def test_a_token_is_made_used_listed_and_revoked(api: TestClient) -> None:
    """Its secret is told once; it is worth nothing from its end on."""
    made = api.post("/tokens", json=CI | {"expires_seconds": 3600, "requests_per_minute": 60})
    document = made.json()
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    assert who(api, document["secret"]).json() == {"name": "ci", "role": "submitter", "tenant": "blue"}

    listed = api.get("/tokens")
    (shown,) = listed.json()["tokens"]
    assert {name: value for name, value in shown.items() if name != "last_used_at"} == {
        name: value for name, value in document.items() if name not in ("secret", "last_used_at")
    }
    assert (shown["created_by"], shown["requests_per_minute"]) == ("admin", 60)
    assert shown["expires_at"] > shown["created_at"]
    assert document["secret"].split("_")[2] not in listed.text

    assert api.delete("/tokens/ci").json() == {"name": "ci", "revoked": True}
    assert who(api, document["secret"]).status_code == 401
    assert api.get("/tokens").json()["tokens"][0]["revoked_at"] is not None
    again = api.delete("/tokens/ci")
    assert (again.status_code, again.json()["type"]) == (404, f"{PROBLEM}unknown-token")


def test_a_name_is_used_once(api: TestClient) -> None:
    """It is the key of a repeated request, and what the audit speaks of, also when it is revoked."""
    api.post("/tokens", json=CI)
    api.delete("/tokens/ci")
    taken = api.post("/tokens", json=CI)

    assert (taken.status_code, taken.json()["type"]) == (409, f"{PROBLEM}name-taken")
    assert len(api.get("/tokens").json()["tokens"]) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "ci", "role": "submitter"}, "invalid-token"),
        ({"name": "ci", "role": "operator", "tenant": "blue"}, "invalid-token"),
        ({"name": "a b", "role": "viewer"}, "invalid-token"),
        ({"name": "ci", "role": "root"}, "malformed-request"),
        ({"name": "ci", "role": "viewer", "expires_seconds": 0}, "malformed-request"),
        ({"name": "ci", "role": "viewer", "expires_seconds": 1e300}, "malformed-request"),
        ({"name": "ci", "role": "viewer", "requests_per_minute": 0}, "malformed-request"),
        ({"name": "ci", "role": "viewer", "secret": "mine"}, "malformed-request"),
        ({"role": "viewer"}, "malformed-request"),
    ],
)
def test_a_token_that_makes_no_sense_is_not_made(api: TestClient, body: dict[str, Any], code: str) -> None:
    answer = api.post("/tokens", json=body)

    assert (answer.status_code, answer.json()["type"]) == (422, PROBLEM + code)
    assert api.get("/tokens").json()["tokens"] == []


def test_the_audit_says_who_made_and_ended_a_token(api: TestClient) -> None:
    """As every change it has a line before and one after, and one of the change itself; none has the secret."""
    secret = api.post("/tokens", json=CI).json()["secret"]
    api.delete("/tokens/ci")
    lines = api.get("/audit").json()["entries"]

    assert [(line["action"], line["outcome"]) for line in reversed(lines)] == [
        ("POST /tokens", "begun"),
        ("token create", "done"),
        ("POST /tokens", "201"),
        ("DELETE /tokens/{name}", "begun"),
        ("token revoke", "done"),
        ("DELETE /tokens/{name}", "200"),
    ]
    assert {line["actor"] for line in lines} == {"admin"}
    assert secret not in str(lines)
