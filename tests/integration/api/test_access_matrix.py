"""Role × endpoint × tenant: who may call what, and what a tenant's token is told of another tenant's jobs.

A new endpoint adds a row to ``ROWS``; without it the first test fails. Tenants' leases, pools and lists are looked at
in ``test_tenants.py``, by the same rows.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.access import Role
from orchestrator.runtime import Runtime
from orchestrator.services.tokens import TokenService
from tests.support.routes import routes_of
from tests.support.servers import RedisServer

OWN: Final = "blue"
OTHER: Final = "red"


class Names(StrEnum):
    """What an endpoint's path, or its body, names."""

    JOB = "job"
    LEASE = "lease"
    POOL = "pool"
    NODE = "node"
    GPU = "gpu"
    QUEUE = "queue"
    SWEEP = "sweep"
    LETTER = "dead letter"
    TOKEN = "token"


#: What belongs to a tenant: to another one it is as if it never was. All else belongs to the installation.
OF_TENANTS: Final = frozenset({Names.JOB, Names.LEASE, Names.POOL})


class Tells(StrEnum):
    """Of whom an endpoint tells that names nothing."""

    OWN = "own"  # of the caller's tenant alone, to one of a tenant
    NOBODY = "nobody"  # the same to everybody: nothing of it is a tenant's


@dataclass(frozen=True)
class Row:
    """What one endpoint asks of its callers."""

    method: str
    path: str
    role: Role | None  # the lowest that may call it; None: anybody, without a token
    names: Names | None = None  # of a tenant: another's is 404
    tells: Tells | None = None  # of an endpoint that reads and names nothing
    every_tenant: bool = False  # tells of all tenants, so a token of one is refused
    absent: bool = False  # what the path names is not there: 404 for all who may
    conflicts: bool = False  # the job may be in a state that does not allow it: 409 from who may
    body: Any = None


ROWS: Final = (
    Row("GET", "/healthz", None, tells=Tells.NOBODY),
    Row("GET", "/readyz", None, tells=Tells.NOBODY),
    Row("GET", "/whoami", Role.VIEWER, tells=Tells.OWN),
    Row("GET", "/audit", Role.ADMIN),
    Row("GET", "/tokens", Role.ADMIN),
    Row("POST", "/tokens", Role.ADMIN, conflicts=True, body={"name": "ci", "role": "viewer"}),
    Row("DELETE", "/tokens/{name}", Role.ADMIN, names=Names.TOKEN, absent=True),
    Row("POST", "/jobs/submit", Role.SUBMITTER, body={"argv": ["true"]}),
    Row("GET", "/jobs", Role.VIEWER, tells=Tells.OWN),
    Row("GET", "/jobs/{job_id}", Role.VIEWER, names=Names.JOB),
    Row("POST", "/jobs/{job_id}/cancel", Role.SUBMITTER, names=Names.JOB),
    Row("POST", "/jobs/cancel", Role.SUBMITTER, names=Names.JOB, body={"tree": "{job_id}"}),
    Row("POST", "/jobs/{job_id}/priority", Role.SUBMITTER, names=Names.JOB, conflicts=True, body={"priority": 7}),
    Row("POST", "/jobs/{job_id}/hold", Role.SUBMITTER, names=Names.JOB, conflicts=True),
    Row("POST", "/jobs/{job_id}/release", Role.SUBMITTER, names=Names.JOB, conflicts=True),
    Row("POST", "/jobs/{job_id}/retry", Role.SUBMITTER, names=Names.JOB, conflicts=True),
    Row("POST", "/jobs/orders", Role.SUBMITTER, body={"order": "hold", "ids": ["none"]}),  # each id has its answer
    Row("GET", "/jobs/{job_id}/logs", Role.VIEWER, names=Names.JOB),
    Row("GET", "/jobs/{job_id}/why", Role.VIEWER, names=Names.JOB),
    Row("GET", "/jobs/{job_id}/events", Role.VIEWER, names=Names.JOB),
    Row("GET", "/jobs/{job_id}/stream", Role.VIEWER, names=Names.JOB),
    Row("GET", "/events", Role.VIEWER, tells=Tells.OWN),
    Row("GET", "/nodes", Role.VIEWER, tells=Tells.OWN),
    Row("POST", "/nodes/{name}/drain", Role.OPERATOR, names=Names.NODE, absent=True),
    Row("POST", "/nodes/{name}/undrain", Role.OPERATOR, names=Names.NODE, absent=True),
    Row("GET", "/control/sweeps", Role.VIEWER, tells=Tells.NOBODY),
    Row("POST", "/control/sweeps/{name}", Role.ADMIN, names=Names.SWEEP, absent=True),
    Row("POST", "/control/reclaim", Role.ADMIN),
    Row("POST", "/control/purge", Role.ADMIN, body={"older_than_seconds": 86_400.0, "dry_run": True}),
    Row("POST", "/control/depose", Role.ADMIN, conflicts=True),
    Row("GET", "/gpus", Role.VIEWER, tells=Tells.OWN),
    Row("POST", "/gpus/{uuid}/quarantine", Role.OPERATOR, names=Names.GPU, absent=True),
    Row("POST", "/gpus/{uuid}/release", Role.OPERATOR, names=Names.GPU, absent=True),
    Row("POST", "/gpus/{uuid}/reset", Role.OPERATOR, names=Names.GPU, absent=True),
    Row("POST", "/leases", Role.SUBMITTER, conflicts=True, body={"gpus": 1}),
    Row("POST", "/leases/{token}/heartbeat", Role.SUBMITTER, names=Names.LEASE, absent=True),
    Row("POST", "/leases/{token}/release", Role.SUBMITTER, names=Names.LEASE, absent=True),
    Row("GET", "/leases", Role.VIEWER, tells=Tells.OWN),
    Row("POST", "/pools", Role.OPERATOR, body={"name": "chat"}),
    Row("GET", "/pools", Role.VIEWER, tells=Tells.OWN),
    Row("POST", "/pools/orders", Role.OPERATOR, body={"order": "wake"}),
    Row("GET", "/pools/{name}", Role.VIEWER, names=Names.POOL, absent=True),
    Row("POST", "/pools/{name}/scale", Role.OPERATOR, names=Names.POOL, absent=True, body={}),
    Row("POST", "/pools/{name}/preload", Role.OPERATOR, names=Names.POOL, absent=True, body={}),
    Row("POST", "/pools/{name}/swap", Role.OPERATOR, names=Names.POOL, absent=True, body={"model": "other"}),
    Row("POST", "/pools/{name}/sleep", Role.OPERATOR, names=Names.POOL, absent=True),
    Row("POST", "/pools/{name}/wake", Role.OPERATOR, names=Names.POOL, absent=True),
    Row("POST", "/pools/{name}/drain", Role.OPERATOR, names=Names.POOL, absent=True),
    Row("POST", "/pools/{name}/stop", Role.OPERATOR, names=Names.POOL, absent=True),
    Row("DELETE", "/pools/{name}", Role.OPERATOR, names=Names.POOL, absent=True),
    Row("GET", "/queues", Role.VIEWER, tells=Tells.OWN),
    Row("GET", "/queues/{name}", Role.VIEWER, names=Names.QUEUE, absent=True),
    Row("POST", "/queues/{name}/pause", Role.OPERATOR, names=Names.QUEUE, absent=True),
    Row("POST", "/queues/{name}/resume", Role.OPERATOR, names=Names.QUEUE, absent=True),
    Row("PATCH", "/queues/{name}", Role.OPERATOR, names=Names.QUEUE, absent=True, body={}),
    Row("GET", "/policy", Role.VIEWER, tells=Tells.NOBODY),
    Row("PATCH", "/policy", Role.OPERATOR, body={}),
    Row("POST", "/policy", Role.OPERATOR, body={}),
    Row("GET", "/tenants", Role.VIEWER, tells=Tells.OWN),
    Row("GET", "/cluster", Role.VIEWER, tells=Tells.OWN),
    Row("GET", "/usage", Role.VIEWER, tells=Tells.OWN),
    Row("GET", "/dlq", Role.VIEWER, every_tenant=True),
    Row("GET", "/dlq/{job_id}", Role.VIEWER, names=Names.LETTER, every_tenant=True, absent=True),
    Row("POST", "/dlq/retry", Role.OPERATOR, body={}),
    Row("POST", "/dlq/purge", Role.OPERATOR, body={}),
    Row("POST", "/dlq/{job_id}/retry", Role.OPERATOR, names=Names.LETTER, absent=True),
    Row("DELETE", "/dlq/{job_id}", Role.OPERATOR, names=Names.LETTER, absent=True),
    Row("GET", "/metrics", Role.VIEWER, every_tenant=True),
    Row("GET", "/openapi.json", Role.VIEWER, tells=Tells.NOBODY),
)
GUARDED: Final = tuple(row for row in ROWS if row.role is not None)

#: Every kind of caller: a role, and the tenant of its token. A submitter has one, operators and admins have none.
CALLERS: Final = {
    "viewer": (Role.VIEWER, None),
    "viewer-of-own": (Role.VIEWER, OWN),
    "viewer-of-other": (Role.VIEWER, OTHER),
    "submitter-of-own": (Role.SUBMITTER, OWN),
    "submitter-of-other": (Role.SUBMITTER, OTHER),
    "operator": (Role.OPERATOR, None),
    "admin": (Role.ADMIN, None),
}


@dataclass(frozen=True)
class World:
    """An app, a secret of each kind of caller, and a job of tenant ``OWN``."""

    client: TestClient
    secrets: dict[str, str]
    job: str

    def ask(self, caller: str, row: Row, *, job: str | None = None, **named: str) -> Any:
        """Send the row's request as this caller, about this job and what else it names by a mark in its path."""
        path, body = row.path, json.dumps(row.body)
        for mark, name in ({"job_id": job or self.job} | named).items():
            path, body = path.replace(f"{{{mark}}}", name), body.replace(f"{{{mark}}}", name)
        more = {} if row.body is None else {"json": json.loads(body)}
        return self.client.request(row.method, path, headers=self.headers(caller), **more)

    def headers(self, caller: str) -> dict[str, str]:
        """Return what shows who asks."""
        return {"Authorization": f"Bearer {self.secrets[caller]}"}


@contextmanager
def opened(runtime: Runtime, *, stopping: bool) -> Iterator[World]:
    """Give the app over a runtime, with tokens and a job; one that stops answers streams with what there is."""
    service = TokenService(runtime.access, runtime.clock)
    secrets = {
        name: service.create(name, role=role, tenant=tenant, by="test")[1] for name, (role, tenant) in CALLERS.items()
    }
    app = create_app(runtime, token="installation")
    if stopping:
        app.state.services.stopping.set()
    with TestClient(app, raise_server_exceptions=False) as client:
        headers = {"Authorization": f"Bearer {secrets['submitter-of-own']}"}
        job = client.post("/jobs/submit", json={"argv": ["true"], "name": "of-blue"}, headers=headers).json()["id"]
        yield World(client, secrets, job)


@pytest.fixture(scope="module")
def world(
    empty_database: Path, embedded_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    home = tmp_path_factory.mktemp("matrix")
    shutil.copy(empty_database, home / "matrix.db")
    url = f"sqlite:///{home / 'matrix.db'}"
    runtime = open_runtime(Settings(home=home, database_url=url, redis_url=embedded_redis_server.unix_url))
    with opened(runtime, stopping=True) as made:
        yield made
    runtime.close()


def test_every_endpoint_has_a_row(runtime: Runtime) -> None:
    """Whoever adds an endpoint says here who may call it."""
    assert sorted(routes_of(create_app(runtime, token="installation"))) == sorted(
        (row.method, row.path) for row in ROWS
    )


def test_every_row_says_what_it_names_or_of_whom_it_tells() -> None:
    """So that nothing of a tenant's can be added without being looked at in ``test_tenants.py``."""
    for row in ROWS:
        assert (row.names is not None) or "{" not in row.path, f"{row.method} {row.path}: what does it name?"
        reads_all = row.method == "GET" and row.names is None and row.role is not Role.ADMIN and not row.every_tenant
        assert reads_all == (row.tells is not None), f"{row.method} {row.path}: of whom does it tell?"
        if row.names is not None and row.names not in OF_TENANTS and row.method != "GET":
            assert row.role is not None
            assert row.role.covers(Role.OPERATOR), f"{row.method} {row.path}: it is the whole installation's"


def test_every_role_is_in_the_matrix() -> None:
    assert {role for role, _tenant in CALLERS.values()} == set(Role)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
@pytest.mark.parametrize("caller", CALLERS)
def test_who_may_call_what(world: World, row: Row, caller: str) -> None:
    """A role that is too low is 403, another tenant's job 404, and everything else is served."""
    role, tenant = CALLERS[caller]
    answer = world.ask(caller, row)

    if row.role is not None and not (role.covers(row.role) and not (row.every_tenant and tenant is not None)):
        expected = {403}
    elif row.absent or (row.names is Names.JOB and tenant == OTHER):
        expected = {404}
    else:
        expected = {200, 201} if row.path != "/readyz" else {200, 503}
        expected |= {409} if row.conflicts else set()
    assert answer.status_code in expected, answer.text


@pytest.mark.parametrize("row", GUARDED, ids=lambda row: f"{row.method} {row.path}")
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer orch_0123456789ab_" + "0" * 64 + "_00000000"}], ids=["none", "forged"]
)
def test_nobody_else_may(world: World, row: Row, headers: dict[str, str]) -> None:
    path = row.path.replace("{job_id}", world.job)
    assert world.client.request(row.method, path, json=row.body, headers=headers).status_code == 401


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.names is Names.JOB], ids=lambda row: f"{row.method} {row.path}"
)
def test_another_tenants_job_is_as_one_that_never_was(world: World, row: Row) -> None:
    """Apart from the id that was asked for, the two answers are the same."""
    never = "01890000-0000-7000-8000-000000000000"
    hidden, absent = world.ask("submitter-of-other", row), world.ask("submitter-of-other", row, job=never)

    assert (hidden.status_code, absent.status_code) == (404, 404)
    assert hidden.text.replace(world.job, never) == absent.text
    assert set(hidden.headers) == set(absent.headers)


@pytest.mark.parametrize("path", ["/jobs", "/jobs?tenant=blue", "/jobs?name=of-blue", "/queues", "/cluster", "/usage"])
def test_what_is_listed_and_counted_for_a_tenant_is_its_own(world: World, path: str) -> None:
    headers = {"Authorization": f"Bearer {world.secrets['viewer-of-other']}"}
    answer = world.client.get(path, headers=headers)

    assert answer.status_code == 200
    assert world.job not in answer.text
    assert "of-blue" not in answer.text


def test_counts_are_of_the_callers_tenant(world: World) -> None:
    """The job of the other tenant is in nobody else's numbers."""

    def count(caller: str) -> int:
        document = world.client.get("/cluster", headers={"Authorization": f"Bearer {world.secrets[caller]}"}).json()
        return sum(document["jobs"].values())

    listed = world.client.get("/jobs", headers={"Authorization": f"Bearer {world.secrets['viewer-of-other']}"}).json()
    assert count("viewer-of-other") == len(listed["jobs"])
    assert count("viewer") > count("viewer-of-other")


def test_a_submitter_submits_for_its_own_tenant_only(world: World) -> None:
    def submit(caller: str, **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {world.secrets[caller]}"}
        return world.client.post("/jobs/submit", json={"argv": ["true"]} | body, headers=headers)

    assert submit("submitter-of-own", tenant=OTHER).status_code == 403
    assert submit("submitter-of-own", tenant=OWN).status_code == 201
    job = submit("operator", tenant=OTHER).json()["id"]
    shown = world.ask("submitter-of-other", Row("GET", "/jobs/{job_id}", Role.VIEWER), job=job)
    assert (shown.json()["tenant"], shown.json()["submitted_by"]) == (OTHER, "operator")


def test_a_key_names_a_job_of_one_tenant(world: World) -> None:
    """The same key of another tenant is another job, and says nothing of the first."""

    def submit(caller: str) -> Any:
        headers = {"Authorization": f"Bearer {world.secrets[caller]}", "Idempotency-Key": "nightly"}
        return world.client.post("/jobs/submit", json={"argv": ["true"]}, headers=headers)

    first, second = submit("submitter-of-own"), submit("submitter-of-other")

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]


def test_only_operators_are_told_where_the_servers_are(world: World) -> None:
    shown = {name: world.ask(name, Row("GET", "/cluster", Role.VIEWER)).json()["redis"] is not None for name in CALLERS}

    assert {name for name, told in shown.items() if told} == {"operator", "admin"}


def test_tenants_are_listed_to_who_may_know_of_them(world: World) -> None:
    """With what they have: jobs by state, and tokens in force."""
    row = Row("GET", "/tenants", Role.VIEWER)
    told = {who: {one["name"]: one for one in world.ask(who, row).json()["tenants"]} for who in CALLERS}
    assert set(told["admin"]) >= {OWN, OTHER}
    assert sum(told["admin"][OWN]["jobs"].values()) > 0
    assert told["admin"][OTHER]["tokens"] == 2
    assert set(told["submitter-of-own"]) == set(told["viewer-of-own"]) == {OWN}
    assert set(told["viewer-of-other"]) == {OTHER}
