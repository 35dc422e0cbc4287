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
from typing import Any, Final

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS as REGISTERED
from schemathesis.checks import load_all_checks
from schemathesis.core.parameters import ParameterLocation

from orchestrator.api import problems
from orchestrator.api.app import create_app
from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.access import Role
from orchestrator.runtime import Runtime
from orchestrator.services.tokens import TokenService
from tests.support import running
from tests.support.openapi import PATH
from tests.support.servers import RedisServer

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
#: Whose requests at the bounds are sent: nobody who may less comes further.
AT_BOUNDS = list(Role) if "FUZZ_EXAMPLES" in os.environ else [Role.ADMIN]
TENANTS = {Role.SUBMITTER: "blue"}
HIDDEN = "of-the-red-tenant"
DOCUMENT: Any = json.loads(PATH.read_text())
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
#: Checks of schemathesis's that are not made, each with why.
LEFT_OUT: Final = {
    "positive_data_acceptance": "a schema cannot say what makes sense: a queue that exists, a share of a GPU or whole"
    " ones, not both; what_is_described_is_read is in its place",
}
load_all_checks()


def what_is_described_is_read(_context: Any, response: Any, case: schemathesis.Case) -> None:
    """What fits the description may make no sense as it stands, but is never malformed.

    But for 3.0, which JSON Schema calls an integer: whoever counts things and writes it so has made a mistake.
    """
    fits = case.meta is not None and case.meta.generation.mode.is_positive and not _has_whole_float(case.body)
    if fits and response.status_code in (400, 422):
        assert response.json()["type"] != f"{problems.TYPE}malformed-request", response.text


def _has_whole_float(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_whole_float, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()


def negative_data_rejection(context: Any, response: Any, case: schemathesis.Case) -> Any:
    """As schemathesis has it, but for what cannot be told from what fits.

    Where the headers do not fit, the token may have been left out, and is put back; a list or an object in the query is
    sent as its values or names one by one, which of a single one is that alone.
    """
    headers = case.meta and case.meta.components.get(ParameterLocation.HEADER)
    if headers is not None and headers.mode.is_negative:
        return None
    if any(isinstance(value, list | dict) and len(value) <= 1 for value in (case.query or {}).values()):
        return None
    return REGISTERED.get_one("negative_data_rejection")(context, response, case)


CHECKS: Final[list[Any]] = [
    *(check for check in REGISTERED.get_all() if check.__name__ not in {*LEFT_OUT, "negative_data_rejection"}),
    negative_data_rejection,
    what_is_described_is_read,
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
    service.create("a-first-one", role=Role.VIEWER, by="test")  # links lead to it: it may be revoked
    made.state.secrets["red"] = service.create("red", role=Role.SUBMITTER, tenant="red", by="test")[1]
    running.register(runtime, "alpha", 2)
    with TestClient(made) as client:
        headers = {"Authorization": "Bearer installation"}
        for tenant, name in (("blue", "seen"), ("red", HIDDEN)):
            client.post("/jobs/submit", json={"argv": ["true"], "tenant": tenant, "name": name}, headers=headers)
    made.state.begin_again = partial(_begin_again, home, embedded_redis_server, runtime)
    made.state.begin_again()
    yield made
    runtime.close()


def _begin_again(home: Path, redis: RedisServer, runtime: Runtime) -> None:
    """Bring the database back to what it was at the first call, but that the host was heard of just now."""
    redis.clear()
    kept = home / "as-it-was.db"
    source, target = (kept, home / "fuzz.db") if kept.exists() else (home / "fuzz.db", kept)
    with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(target)) as copy:
        database.backup(copy)
    running.register(runtime, "alpha", 2)


@pytest.fixture(scope="module")
def schema(app: FastAPI) -> Any:
    """The description, as the app gives it."""
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers=_headers(app, Role.ADMIN))


@pytest.mark.parametrize("role", [role.value for role in Role])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_made_up_requests_are_answered_as_described(
    app: FastAPI, schema: Any, path: str, method: str, role: str
) -> None:
    """Requests that fit the description and requests that do not."""
    headers, operation = _headers(app, role), schema[path][method]
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
        answer = case.call_and_validate(headers=headers, checks=checks_of(path))
        if needed is not None and not Role(role).covers(needed):
            assert answer.status_code >= 400, "the role is too low"
        if role in TENANTS:
            assert HIDDEN not in answer.text, "another tenant's job"

    send()


@pytest.mark.parametrize("role", [role.value for role in AT_BOUNDS])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_bounds_are_where_the_description_has_them(
    app: FastAPI, schema: Any, path: str, method: str, role: str
) -> None:
    """Each value at its bounds and one beyond, each part missing or of another type, each method that is not there."""
    operation = schema[path][method]
    cases = operation.schema.iter_coverage_cases(
        operation,
        generation_modes=list(schemathesis.GenerationMode),
        generation_config=schema.config.generation_for(operation=operation, phase="coverage"),
    )
    for case in cases:
        case.call_and_validate(headers=_headers(app, role), checks=checks_of(path))


def checks_of(path: str) -> list[Any]:
    """Return the checks of a path's answers; there is no worker, so it is not ready."""
    return [check for check in CHECKS if (path, check.__name__) != ("/readyz", "not_a_server_error")]


def _headers(app: FastAPI, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {app.state.secrets[role]}"}


def _modes(path: str, method: str) -> list[schemathesis.GenerationMode]:
    """An operation without parameters and body has no request that does not fit."""
    operation = DOCUMENT["paths"][path][method]
    takes = operation.get("parameters") or operation.get("requestBody")
    return list(schemathesis.GenerationMode) if takes else [schemathesis.GenerationMode.POSITIVE]
