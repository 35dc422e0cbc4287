"""Made-up requests, by the API's own description: no defect, no answer that is not described, no hole in the guard.

``make fuzz`` sends hundreds for each operation; the suite a few, always the same.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orchestrator.api.app import create_app
from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.access import Role
from orchestrator.services.tokens import TokenService
from tests.support import running
from tests.support.openapi import PATH
from tests.support.servers import RedisServer

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
TENANTS = {Role.SUBMITTER: "blue"}
HIDDEN = "of-the-red-tenant"
DOCUMENT: Any = json.loads(PATH.read_text())
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def app(
    empty_database: Path, embedded_redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FastAPI]:
    """An app with a token for each role, whose secrets are in its state."""
    home = tmp_path_factory.mktemp("fuzz")
    shutil.copy(empty_database, home / "fuzz.db")
    url = f"sqlite:///{home / 'fuzz.db'}"
    given = Settings(
        home=home, database_url=url, redis_url=embedded_redis_server.unix_url, api_requests_per_minute=10**6
    )
    runtime = open_runtime(given)
    service = TokenService(runtime.access, runtime.clock)
    made = create_app(runtime, token="installation")
    made.state.services.stopping.set()  # streams tell what there is, and end
    made.state.secrets = {
        role: service.create(role.value, role=role, tenant=TENANTS.get(role), by="test")[1] for role in Role
    }
    running.register(runtime, "alpha", 2)
    with TestClient(made) as client:
        headers = {"Authorization": "Bearer installation"}
        for tenant, name in (("blue", "seen"), ("red", HIDDEN)):
            client.post("/jobs/submit", json={"argv": ["true"], "tenant": tenant, "name": name}, headers=headers)
    made.state.begin_again = partial(_begin_again, home, embedded_redis_server)
    made.state.begin_again()
    yield made
    runtime.close()


def _begin_again(home: Path, redis: RedisServer) -> None:
    """Bring the database back to what it was at the first call."""
    redis.clear()
    kept = home / "as-it-was.db"
    source, target = (kept, home / "fuzz.db") if kept.exists() else (home / "fuzz.db", kept)
    with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(target)) as copy:
        database.backup(copy)


@pytest.fixture(scope="module")
def schema(app: FastAPI) -> Any:
    """The description, as the app gives it."""
    headers = {"Authorization": f"Bearer {app.state.secrets[Role.ADMIN]}"}
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)


@pytest.mark.parametrize("role", [role.value for role in Role])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_made_up_requests_are_answered_as_described(
    app: FastAPI, schema: Any, path: str, method: str, role: str
) -> None:
    """Requests that fit the description and requests that do not."""
    headers = {"Authorization": f"Bearer {app.state.secrets[Role(role)]}"}
    operation = schema[path][method]
    said = DOCUMENT["paths"][path][method].get("x-role")
    needed = None if said is None else Role(said)
    made_up = st.one_of(operation.as_strategy(generation_mode=mode) for mode in _modes(path, method))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(made_up)
    def send(case: schemathesis.Case) -> None:
        checks = [check for check in CHECKS if (path, check) != ("/readyz", not_a_server_error)]  # it has no worker
        answer = case.call_and_validate(headers=headers, checks=checks)
        if needed is not None and not Role(role).covers(needed):
            assert answer.status_code >= 400, "the role is too low"
        if role in TENANTS:
            assert HIDDEN not in answer.text, "another tenant's job"

    send()


def _modes(path: str, method: str) -> list[schemathesis.GenerationMode]:
    """An operation without parameters and body has no request that does not fit."""
    operation = DOCUMENT["paths"][path][method]
    takes = operation.get("parameters") or operation.get("requestBody")
    return list(schemathesis.GenerationMode) if takes else [schemathesis.GenerationMode.POSITIVE]
