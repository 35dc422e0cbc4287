"""What a tenant's token is told of another tenant's leases, pools, GPUs and usage, and what it may do with them.

The rows are those of ``test_access_matrix.py``: an endpoint that names something of a tenant's, or tells of tenants, is
looked at here as soon as it has its row.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import pytest

from orchestrator.domain.access import Role
from orchestrator.runtime import Runtime
from tests.integration.api.test_access_matrix import OF_TENANTS, OTHER, OWN, ROWS, Names, Row, Tells, World, opened
from tests.support.running import Running, confirming, register

STRANGERS: Final = ("viewer-of-other", "submitter-of-other")
NEVER: Final = {
    Names.JOB: {"job_id": "01890000-0000-7000-8000-000000000000"},
    Names.LEASE: {"token": "lease_" + "x" * 32},
    Names.POOL: {"name": "never"},
}
#: No stranger is told any of these.
MARKS: Final = (OWN, "-of-own")


@dataclasses.dataclass(frozen=True)
class Blue:
    """What tenant ``OWN`` has: a job that runs, one that waits, a lease, a pool."""

    world: World
    lease: dict[str, Any]
    running: str

    def named(self, row: Row) -> dict[str, str]:
        """Return what the row's marks stand for."""
        assert row.names is not None
        return {
            Names.JOB: {"job_id": self.world.job},
            Names.LEASE: {"token": self.lease["token"]},
            Names.POOL: {"name": "of-blue"},
        }[row.names]

    def ask(self, caller: str, row: Row, named: dict[str, str]) -> Any:
        """Send the row's request."""
        return self.world.ask(caller, row, job=named.get("job_id"), **{k: v for k, v in named.items() if k != "job_id"})

    def get(self, caller: str, path: str) -> Any:
        """Read."""
        return self.world.client.get(path, headers=self.world.headers(caller))

    def post(self, caller: str, path: str, **body: Any) -> Any:
        """Change something."""
        return self.world.client.post(path, json=body, headers=self.world.headers(caller))


@pytest.fixture
def blue(runtime: Runtime) -> Iterator[Blue]:
    register(runtime, "alpha", 4)
    with opened(runtime, stopping=False) as world, confirming(runtime):
        headers = world.headers("submitter-of-own")
        running = world.client.post("/jobs/submit", json={"argv": ["true"], "gpus": 1}, headers=headers).json()["id"]
        Running(runtime, running, gpus=("alpha-3",))
        lease = world.client.post("/leases", json={"ttl_seconds": 60, "name": "of-blue"}, headers=headers).json()
        pool = {"name": "of-blue", "tenant": OWN}
        assert world.client.post("/pools", json=pool, headers=world.headers("operator")).status_code == 201
        yield Blue(world, lease, running)


def title(row: Row) -> str:
    return f"{row.method} {row.path}"


@pytest.mark.parametrize("row", [row for row in ROWS if row.names in OF_TENANTS], ids=title)
@pytest.mark.parametrize("caller", STRANGERS)
def test_what_is_another_tenants_is_as_what_never_was(blue: Blue, row: Row, caller: str) -> None:
    """Whatever it is, by whichever endpoint: apart from the name that was asked for, the two answers are the same."""
    assert row.role is not None
    assert row.names is not None
    named, never = blue.named(row), NEVER[row.names]
    before = blue.get("admin", "/leases").json(), blue.get("admin", "/pools").json(), blue.get("admin", "/jobs").json()

    hidden, absent = blue.ask(caller, row, named), blue.ask(caller, row, never)

    role = Role.VIEWER if caller.startswith("viewer") else Role.SUBMITTER
    assert hidden.status_code == absent.status_code == (404 if role.covers(row.role) else 403)
    (name,), (other) = named.values(), next(iter(never.values()))
    assert hidden.text.replace(name, other) == absent.text
    after = blue.get("admin", "/leases").json(), blue.get("admin", "/pools").json(), blue.get("admin", "/jobs").json()
    assert after == before


READS: Final = {
    "/usage": ["/usage?by=tenant", "/usage?by=user", "/usage?by=job", "/usage?by=gpu"],
    "/leases": ["/leases", "/leases?ended=true"],
    "/jobs": ["/jobs", f"/jobs?tenant={OWN}", "/jobs?name=of-blue"],
    "/events": ["/events", "/events?last=500"],
}


@pytest.mark.parametrize("row", [row for row in ROWS if row.tells is not None], ids=title)
def test_of_other_tenants_nothing_is_told(blue: Blue, row: Row) -> None:
    """Of what is a tenant's, its own callers are told, and no stranger."""
    for path in READS.get(row.path, [row.path]):
        strange = blue.get("viewer-of-other", path)
        assert strange.status_code in (200, 503)
        told = [mark for mark in (*MARKS, blue.world.job, blue.running) if mark in strange.text]
        assert told == [], path
    if row.tells is Tells.OWN and row.path not in ("/queues", "/cluster"):  # these tell numbers alone
        assert any(mark in blue.get("viewer-of-own", row.path).text for mark in (*MARKS, blue.running))


def test_numbers_are_of_the_callers_tenant(blue: Blue) -> None:
    def numbers(caller: str) -> tuple[Any, ...]:
        jobs = blue.get(caller, "/cluster").json()["jobs"]
        queues = blue.get(caller, "/queues").json()["queues"]
        held = [queue["jobs"] for queue in queues if queue["name"] == "gpu"]
        return sum(jobs.values()), sum(sum(each.values()) for each in held), used(blue, caller) > 0

    assert numbers("viewer-of-other") == (0, 0, False)
    assert numbers("viewer-of-own") == numbers("viewer") == (2, 2, True)


def used(blue: Blue, caller: str) -> float:
    return float(blue.get(caller, "/usage?by=gpu").json()["total"]["gpu_seconds"])


def test_of_other_tenants_holders_a_caller_is_told_that_there_are_such(blue: Blue) -> None:
    """Whoever waits for a GPU sees that it is taken, and not by whom."""

    def holders(caller: str) -> list[dict[str, Any]]:
        gpus = blue.get(caller, "/gpus").json()["gpus"]
        of_hosts = [gpu for node in blue.get(caller, "/nodes").json()["nodes"] for gpu in node["gpus"]]
        assert [gpu["holders"] for gpu in of_hosts] == [gpu["holders"] for gpu in gpus]
        return [holder for gpu in gpus for holder in gpu["holders"]]

    hidden, shown = holders("viewer-of-other"), holders("viewer-of-own")

    assert {holder["lease"] for holder in hidden} == {holder["lease"] for holder in shown}
    assert [(holder["jobs"], holder["tenant"], holder["holder"]) for holder in hidden] == [([], None, None)] * 2
    assert {holder["tenant"] for holder in shown} == {OWN}
    assert [blue.running] in [holder["jobs"] for holder in shown]


def test_a_lease_is_named_by_its_number_by_operators_alone(blue: Blue) -> None:
    """Numbers are told to all, so that they prove nothing."""
    by_number = f"/leases/{blue.lease['id']}/release"
    for caller in ("submitter-of-own", *STRANGERS, "viewer", "viewer-of-own"):
        assert blue.post(caller, by_number).status_code == 403, caller
    assert blue.post("submitter-of-own", f"/leases/{blue.lease['token']}/heartbeat").json()["state"] == "active"
    assert blue.post("operator", by_number).json()["state"] == "released"


def test_a_submitter_leases_for_its_own_tenant_only(blue: Blue) -> None:
    refused = blue.post("submitter-of-other", "/leases", tenant=OWN)
    granted = blue.post("submitter-of-other", "/leases", tenant=OTHER)

    assert (refused.status_code, granted.status_code) == (403, 201)
    assert [lease["tenant"] for lease in blue.get("viewer-of-own", "/leases").json()["leases"]] == [OWN]


@pytest.mark.parametrize("order", ["hold", "release", "priority", "retry"])
def test_an_order_for_many_jobs_passes_another_tenants_by(blue: Blue, order: str) -> None:
    """It is told of them as of jobs that never were, and does what it may with the caller's own."""
    mine = blue.post("submitter-of-other", "/jobs/submit", argv=["true"]).json()["id"]
    before = blue.get("admin", f"/jobs/{blue.world.job}").json()
    never = NEVER[Names.JOB]["job_id"]
    more = {"priority": 9} if order == "priority" else {}

    answer = blue.post("submitter-of-other", "/jobs/orders", order=order, ids=[blue.world.job, never, mine], **more)

    told = {one.pop("id"): one for one in answer.json()["results"]}
    hidden = {name: str(value).replace(blue.world.job, never) for name, value in told[blue.world.job].items()}
    assert hidden == {name: str(value) for name, value in told[never].items()}
    assert told[never]["problem"] == "unknown-job"
    assert told[mine]["problem"] != "unknown-job"
    assert blue.get("admin", f"/jobs/{blue.world.job}").json() == before
