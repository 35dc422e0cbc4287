"""Who may ask: the bearer token, and where it comes from if nobody configured one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from orchestrator.api import guard
from orchestrator.api.app import create_app
from orchestrator.api.own_token import OwnToken, own_token
from orchestrator.config import Settings
from orchestrator.errors import InvalidSettings
from orchestrator.home import make_token
from orchestrator.runtime import Runtime
from tests.integration.api.conftest import LOCAL

TOKEN = "s3cret"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
JOB = "01890000-0000-7000-8000-000000000000"

#: A few of the guarded ones; test_access_matrix.py has them all.
GUARDED = [
    ("POST", "/jobs/submit"),
    ("GET", "/jobs"),
    ("GET", "/jobs/{job_id}"),
    ("POST", "/jobs/{job_id}/cancel"),
    ("GET", "/metrics"),
    ("GET", "/no-such-path"),
]


@pytest.fixture
def api(runtime: Runtime) -> Iterator[TestClient]:
    with TestClient(create_app(runtime, token=TOKEN), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
    ],
)
def test_no_route_answers_without_the_token(api: TestClient, method: str, path: str, given: str | None) -> None:
    """Missing, wrong, cut, longer, or in another scheme: 401, and nothing else is told."""
    headers = {} if given is None else {"Authorization": given}

    answer = api.request(method, path.format(job_id=JOB, uuid="GPU-a"), headers=headers)

    assert answer.status_code == 401, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["type"] == "urn:gpu-orchestrator:problem:unauthenticated"
    assert TOKEN not in answer.text


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_every_route_answers_with_the_token(api: TestClient, method: str, path: str, scheme: str) -> None:
    answer = api.request(method, path.format(job_id=JOB, uuid="GPU-a"), headers={"Authorization": f"{scheme} {TOKEN}"})

    assert answer.status_code != 401
    assert answer.status_code < 500, answer.text


def test_a_token_with_other_letters_is_compared_without_an_error(api: TestClient) -> None:
    answer = api.get("/jobs", headers={"Authorization": "Bearer ü\xff".encode()})

    assert answer.status_code == 401


def test_the_token_is_compared_in_constant_time(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a refusal takes tells nothing of how much was right: this comparison alone decides."""
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda given, own: False)
    assert api.get("/jobs", headers=BEARER).status_code == 401
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda given, own: (given, own) == (b"wrong", TOKEN.encode()))
    assert api.get("/jobs", headers={"Authorization": "Bearer wrong"}).status_code == 200


def test_a_token_may_hold_any_letters(runtime: Runtime) -> None:
    with TestClient(create_app(runtime, token="schlüssel")) as client:
        answer = client.get("/jobs", headers={b"Authorization": "Bearer schlüssel".encode()})

    assert answer.status_code == 200


def test_health_is_told_to_everybody(api: TestClient) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    assert api.get("/readyz").status_code == 503


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])  # noqa: S104
def test_only_a_configured_token_opens_an_address_that_others_reach(settings: Settings, host: str) -> None:
    """Who opens the API to a network says with which token; it is not found lying in the home."""
    open_to_all = settings.model_copy(update={"api_host": host})

    with pytest.raises(InvalidSettings, match="api_token"):
        own_token(open_to_all)
    configured = open_to_all.model_copy(update={"api_token": SecretStr(TOKEN)})
    assert own_token(configured) == OwnToken(TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_address_without_a_token_gets_the_homes(settings: Settings, host: str) -> None:
    """Made once, for its owner's eyes; later processes of the home find it."""
    local = settings.model_copy(update={"api_host": host})

    made, again = own_token(local), own_token(local)

    assert made == again
    assert made.file == settings.home / "token"
    assert made.file.read_text() == f"{made.secret}\n"
    assert made.file.stat().st_mode & 0o777 == 0o600
    assert len(made.secret) >= 64
    assert [path.name for path in settings.home.glob(".token*")] == []


def test_of_many_that_make_a_homes_token_at_once_one_wins(tmp_path: Path) -> None:
    """Processes of one home start together: each of them reads the same token, whole."""
    makers, home = 8, tmp_path / "home"
    together = threading.Barrier(makers)

    def make(_number: int) -> str:
        together.wait(20)
        return make_token(home).read_text()

    with ThreadPoolExecutor(makers) as threads:
        read = list(threads.map(make, range(makers)))

    assert len(set(read)) == 1
    assert read[0].startswith("orch_")
    assert [path.name for path in home.iterdir()] == ["token"]


def test_a_home_that_cannot_hold_a_token_is_told_of(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InvalidSettings, match="api_token"):
        own_token(settings.model_copy(update={"home": tmp_path / "file"}))


def test_on_loopback_nobody_is_let_in_without_a_token(runtime: Runtime) -> None:
    """The address is not who asks: every user and every page of this host reaches it."""
    with TestClient(create_app(runtime, token=TOKEN, of_home=True), LOCAL) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/jobs").status_code == 401
        assert client.post("/jobs/submit", json={"argv": ["true"]}).status_code == 401
        assert client.get("/jobs", headers=BEARER).json()["jobs"] == []


@pytest.mark.parametrize("token", ["", " ", "\n"])
def test_an_empty_token_is_refused(runtime: Runtime, token: str) -> None:
    """As from an empty token file: otherwise ``Authorization: Bearer`` with nothing behind it would do."""
    with pytest.raises(InvalidSettings, match="api_token"):
        create_app(runtime, token=token)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:8470"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Host": "127.0.0.1.example"},
        {"Host": "localhost@rebound.example"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
    ],
    ids=str,
)
def test_with_the_homes_token_other_sites_pages_are_refused(runtime: Runtime, headers: dict[str, str]) -> None:
    """A browser on this host that was given the token does not lend it to another site's page."""
    app = create_app(runtime, token=TOKEN, of_home=True)
    with TestClient(app, LOCAL, headers=BEARER, raise_server_exceptions=False) as client:
        refused = client.post("/jobs/submit", json={"argv": ["true"]}, headers=headers)
        unread = client.get("/jobs", headers=headers)
        left = client.get("/jobs").json()["jobs"]

    assert (refused.status_code, unread.status_code, left) == (403, 403, [])
    assert refused.json()["type"] == "urn:gpu-orchestrator:problem:forbidden"
    assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("host", ["127.0.0.1:8470", "localhost:8470", "[::1]:8470", "127.0.0.1", "LOCALHOST"])
def test_with_the_homes_token_this_hosts_own_pages_are_served(runtime: Runtime, host: str) -> None:
    with TestClient(create_app(runtime, token=TOKEN, of_home=True), LOCAL, headers=BEARER) as client:
        assert client.get("/jobs", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200


def test_with_a_configured_token_any_name_is_served(api: TestClient) -> None:
    """A proxy may give it another one."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "gpus.example", "Origin": "https://gpus.example"}

    assert api.get("/jobs", headers=headers).status_code == 200
