"""What holds for every request: its id, its headers, how often, and the audit of what it changed."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from orchestrator.api.app import create_app
from orchestrator.config import Settings
from orchestrator.domain.access import Role
from orchestrator.errors import StoreUnavailable
from orchestrator.runtime import Runtime
from orchestrator.services.tokens import TokenService
from tests.integration.api.conftest import LOCAL, OWN, client_of
from tests.integration.api.test_access_matrix import ROWS, Row

NEVER = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
def ask(runtime: Runtime) -> Iterator[Callable[..., Any]]:
    """Send requests with the secret of a new token."""
    service = TokenService(runtime.access, runtime.clock)
    with TestClient(create_app(runtime, token="own"), LOCAL, raise_server_exceptions=False) as client:

        def with_token(name: str, role: Role, tenant: str | None = None, **options: Any) -> Callable[..., Any]:
            _token, secret = service.create(name, role=role, tenant=tenant, by="test", **options)

            def request(method: str, path: str, **more: Any) -> Any:
                headers = {"Authorization": f"Bearer {secret}"} | more.pop("headers", {})
                return client.request(method, path, headers=headers, **more)

            return request

        yield with_token


@pytest.mark.parametrize("path", ["/healthz", "/jobs", f"/jobs/{NEVER}", "/no-such-path"])
@pytest.mark.parametrize("token", ["own", "wrong"])
def test_every_answer_has_the_headers(runtime: Runtime, path: str, token: str) -> None:
    with TestClient(create_app(runtime, token="own")) as client:
        headers = client.get(path, headers={"Authorization": f"Bearer {token}"}).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-request-id"]
    assert not [name for name in headers if name.startswith("access-control-")], "no other site's page may read it"


def test_a_preflight_of_another_site_gets_no_permission(api: TestClient) -> None:
    answer = api.options("/jobs", headers={"Origin": "https://x.example", "Access-Control-Request-Method": "POST"})

    assert not answer.is_success
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_request_keeps_its_callers_id(api: TestClient) -> None:
    assert api.get("/jobs", headers={"X-Request-Id": "trace-1.a"}).headers["x-request-id"] == "trace-1.a"


@pytest.mark.parametrize("given", ["", "two words", "x" * 65, "a;b", "ü"])
def test_an_id_that_does_not_fit_into_a_log_is_replaced(api: TestClient, given: str) -> None:
    answer = api.get("/jobs", headers={b"X-Request-Id": given.encode()})

    assert len(answer.headers["x-request-id"]) == 32


def test_no_socket_is_opened(api: TestClient) -> None:
    """Whoever adds one has to say how its callers are identified: until then all are turned away."""
    with pytest.raises(WebSocketDisconnect) as caught, api.websocket_connect("/jobs"):
        pass

    assert caught.value.code == 1008


def test_defects_tell_nothing_of_themselves(runtime: Runtime) -> None:
    class Broken:
        def list_jobs(self, wanted: object) -> object:
            raise RuntimeError("SELECT secret FROM place")

    with client_of(dataclasses.replace(runtime, jobs=Broken())) as client:  # type: ignore[arg-type]
        answer = client.get("/jobs")

    assert answer.status_code == 500
    assert answer.json()["type"].endswith(":internal-error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"]


def test_a_defect_is_logged_with_the_job_of_its_path(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def get(self, job_id: str) -> object:
            raise RuntimeError("for the test")

    app = create_app(dataclasses.replace(runtime, jobs=Broken()), token="own")  # type: ignore[arg-type]
    with TestClient(app, LOCAL, headers={"Authorization": "Bearer own"}) as client:
        assert client.get(f"/jobs/{NEVER}").status_code == 500

    (record,) = (one for one in caplog.records if one.name == "orchestrator.api.edge")
    assert record.__dict__["job_id"] == NEVER


def test_a_token_that_asks_too_often_is_told_when_to_come_again(ask: Callable[..., Any]) -> None:
    slow = ask("slow", Role.VIEWER, requests_per_minute=6)
    other = ask("other", Role.VIEWER)

    assert slow("GET", "/jobs").status_code == 200
    refused = slow("GET", "/jobs")

    assert refused.status_code == 429
    assert refused.json()["type"].endswith(":rate-limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert other("GET", "/jobs").status_code == 200


def test_a_change_has_two_lines_and_a_refused_one_has_one(ask: Callable[..., Any], runtime: Runtime) -> None:
    blue, viewer = ask("blue-ci", Role.SUBMITTER, "blue"), ask("viewer", Role.VIEWER)
    job = blue("POST", "/jobs/submit", json={"argv": ["true"]}).json()["id"]

    blue("POST", f"/jobs/{job}/cancel", headers={"X-Request-Id": "r1"})
    viewer("POST", f"/jobs/{job}/cancel", headers={"X-Request-Id": "r2"})
    blue("GET", f"/jobs/{job}")

    lines = [line for line in runtime.access.audit(before_seq=None, limit=99) if line.request_id]
    assert [(one.request_id, one.actor, one.role, one.tenant, one.action, one.outcome) for one in reversed(lines)] == [
        ("r1", "blue-ci", "submitter", "blue", "POST /jobs/{job_id}/cancel", "begun"),
        ("r1", "blue-ci", "submitter", "blue", "POST /jobs/{job_id}/cancel", "200"),
        ("r2", "viewer", "viewer", None, "POST /jobs/{job_id}/cancel", "403"),
    ]
    assert {one.target for one in lines} == {f"/jobs/{job}/cancel"}


def test_without_a_line_nothing_is_changed(runtime: Runtime) -> None:
    """A change that could not be told of later is not made."""

    class Silent:
        def note(self, entry: object) -> None:
            raise StoreUnavailable("the audit is away")

    changed = dataclasses.replace(runtime, access=Silent())  # type: ignore[arg-type]
    with client_of(changed) as client:
        job = client.post("/jobs/submit", json={"argv": ["true"]}).json()["id"]
        answer = client.post(f"/jobs/{job}/cancel")

        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get(f"/jobs/{job}").json()["state"] != "cancelled"


def test_an_admin_reads_the_audit_by_pages(ask: Callable[..., Any]) -> None:
    admin = ask("root", Role.ADMIN)
    ask("second", Role.VIEWER)

    first = admin("GET", "/audit", params={"limit": 1}).json()
    second = admin("GET", "/audit", params={"limit": 1, "cursor": first["next"]}).json()

    assert [page["entries"][0]["target"] for page in (first, second)] == ["second as viewer", "root as admin"]
    assert set(first["entries"][0]) == {
        *("seq", "at", "request_id", "actor", "role", "tenant", "action", "target", "outcome")
    }


def test_a_token_tells_whom_it_stands_for(ask: Callable[..., Any], api: TestClient) -> None:
    blue = ask("blue-ci", Role.SUBMITTER, "blue")

    assert blue("GET", "/whoami").json() == {"name": "blue-ci", "role": "submitter", "tenant": "blue"}
    assert api.get("/whoami").json() == {"name": "admin", "role": "admin", "tenant": None}


def test_a_tokens_role_counts_and_a_dead_one_is_refused(runtime: Runtime) -> None:
    """Also by a process that did not revoke it."""
    service = TokenService(runtime.access, runtime.clock)
    _token, secret = service.create("viewer", role=Role.VIEWER, by="test")
    headers = {"Authorization": f"Bearer {secret}"}
    with client_of(runtime) as client:
        assert client.post("/jobs/submit", json={"argv": ["true"]}, headers=headers).status_code == 403
        service.revoke("viewer", by="test")
    with client_of(runtime) as client:
        assert client.get("/jobs", headers=headers).status_code == 401


async def unread(app: FastAPI, method: str, path: str, token: str) -> int:
    """Return the status of a request whose body cannot be read: whoever tries fails."""

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    statuses: list[int] = []
    headers = {"host": "127.0.0.1", "content-length": "1000", "authorization": f"Bearer {token}"}
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "scheme": "http", "server": ("127.0.0.1", 8470), "client": ("127.0.0.1", 1),
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()], "asgi": {"spec_version": "2.3"},
    }  # fmt: skip
    await app(scope, receive, send)
    return statuses[0]


def test_a_stranger_is_refused_before_the_body_is_read(runtime: Runtime) -> None:
    """A stranger's gigabyte costs nothing, wherever it is sent."""
    app = create_app(runtime, token=OWN)
    for method, path in (*(("POST", row.path) for row in ROWS if row.method == "POST"), ("PUT", "/no-such-path")):
        assert asyncio.run(unread(app, method, path, "wrong")) == 401, path


@pytest.mark.parametrize("row", [row for row in ROWS if row.role not in (None, Role.VIEWER)], ids=lambda row: row.path)
def test_who_may_not_ask_is_refused_before_the_body_is_read(runtime: Runtime, row: Row) -> None:
    """Also for its role; and the audit has its line about that."""
    _token, secret = TokenService(runtime.access, runtime.clock).create("viewer", role=Role.VIEWER, by="test")

    assert asyncio.run(unread(create_app(runtime, token=OWN), row.method, row.path, secret)) == 403

    newest = runtime.access.audit(before_seq=None, limit=1)[0]
    if row.method != "GET":
        assert (newest.actor, newest.action, newest.outcome) == ("viewer", f"{row.method} {row.path}", "403")


def test_what_who_may_not_ask_sends_is_not_looked_at(ask: Callable[..., Any]) -> None:
    """A role that is too low is told so, not what is wrong with its JSON."""
    viewer = ask("viewer", Role.VIEWER)

    assert viewer("POST", "/jobs/submit", content=b"{", headers={"Content-Type": "application/json"}).status_code == 403


def test_a_body_is_bounded_before_it_is_understood(runtime: Runtime) -> None:
    with client_of(runtime) as client:
        own = {"Content-Type": "application/json"}
        deep = client.post("/jobs/submit", content=b"[" * 50_000, headers=own)
        assert (deep.status_code, deep.json()["type"].rpartition(":")[2]) == (422, "too-deep")
        large = client.post("/jobs/submit", content=b" " * 10_000_000, headers=own)
        assert (large.status_code, large.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    ("role", "body", "status"),
    [
        (Role.SUBMITTER, {"argv": ["/opt/train", "--lr", "1"]}, 201),
        (Role.SUBMITTER, {"argv": ["/opt/train"], "secrets": ["HF_TOKEN"]}, 201),
        (Role.SUBMITTER, {"argv": ["/bin/sh", "-c", "/opt/train"]}, 403),
        (Role.SUBMITTER, {"argv": ["train"], "cwd": "/opt"}, 403),
        (Role.SUBMITTER, {"argv": ["/opt/../bin/sh"]}, 403),
        (Role.SUBMITTER, {"argv": ["/opt/train"], "env": {"PYTHONPATH": "/tmp"}}, 403),
        (Role.SUBMITTER, [{"argv": ["/opt/train"]}, {"argv": ["/bin/sh"]}], 403),
        (Role.OPERATOR, {"argv": ["/opt/train"]}, 403),
        (Role.ADMIN, {"argv": ["/bin/sh"], "env": {"A": "b"}}, 201),
    ],
    ids=str,
)
def test_a_role_runs_the_commands_that_it_is_allowed(
    runtime: Runtime, settings: Settings, role: Role, body: Any, status: int
) -> None:
    """A role without an entry runs none; any program is ``*``; a variable could make another program of one."""
    allowed = {Role.SUBMITTER: ("/opt/train",), Role.ADMIN: ("*",)}
    restricted = dataclasses.replace(runtime, settings=settings.model_copy(update={"allowed_commands": allowed}))
    tenant = "blue" if role is Role.SUBMITTER else None
    _token, secret = TokenService(runtime.access, runtime.clock).create("ci", role=role, tenant=tenant, by="test")
    with TestClient(create_app(restricted, token="own")) as client:
        answer = client.post("/jobs/submit", json=body, headers={"Authorization": f"Bearer {secret}"})

        assert answer.status_code == status, answer.text
        jobs = client.get("/jobs", headers={"Authorization": "Bearer own"}).json()["jobs"]
        assert len(jobs) == (1 if status == 201 else 0)


@pytest.mark.parametrize(
    ("secrets", "words"),
    [
        (["a b"], "name of a secret"),
        (["../x"], "name of a secret"),
        (["LD_PRELOAD"], "set by the orchestrator"),
        (["A"], "in the environment too"),
        (["A" * 65], "at most 64"),
        ([f"A{number}" for number in range(65)], "at most 64"),
    ],
)
def test_names_of_secrets_are_checked(api: TestClient, secrets: list[str], words: str) -> None:
    answer = api.post("/jobs/submit", json={"argv": ["true"], "env": {"A": "b"}, "secrets": secrets})

    assert answer.status_code == 422
    assert words in answer.text


@pytest.mark.parametrize("instant", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z"])
def test_accounts_of_a_time_before_all_leases_are_refused_or_empty(ask: Callable[..., Any], instant: str) -> None:
    """No instant that a date-time can name is a defect."""
    viewer = ask("viewer", Role.VIEWER)
    assert viewer("GET", "/usage", params={"until": instant}).json()["type"].endswith(":invalid-request")
    answer = viewer("GET", "/usage", params={"since": instant})
    assert (answer.status_code, answer.json()["usage"]) == (200, [])
