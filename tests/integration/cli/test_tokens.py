"""``orch token``: issue, list, revoke, and an API that knows them."""

from pathlib import Path

from orchestrator.storage.schema import upgrade
from tests.integration.cli.conftest import Installation, Orch
from tests.support.cli_fields import FIELDS


def home_with_schema(tmp_path: Path) -> Orch:
    upgrade(f"sqlite:///{tmp_path / 'orchestrator.db'}")
    return Orch(ORCHESTRATOR_HOME=str(tmp_path))


def test_a_token_is_created_listed_and_revoked(tmp_path: Path) -> None:
    """The secret is printed once, and nothing in the home holds it."""
    orch = home_with_schema(tmp_path)

    secret = orch("token", "create", "ci", "--role", "submitter", "--tenant", "blue", "--expires", "90d").out.strip()
    made = orch("token", "create", "root", "--role", "admin", "--requests-per-minute", "60", "--json").document
    listed = orch("token", "list", "--json").document
    table = orch("token", "list")
    revoked = orch("token", "revoke", "ci", "--json").document

    assert set(made) == FIELDS["token create"]
    assert [set(one) for one in listed] == [FIELDS["token list"]] * 2
    assert [(one["name"], one["role"], one["tenant"]) for one in listed] == [
        ("ci", "submitter", "blue"),
        ("root", "admin", None),
    ]
    assert listed[0]["created_by"].startswith("cli:")
    assert secret.startswith(f"orch_{listed[0]['id']}_")
    assert secret not in table.out
    assert revoked == {"name": "ci", "revoked": True}
    assert secret.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert orch("token", "list", "--json").document[0]["revoked_at"]


def test_what_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    orch = home_with_schema(tmp_path)
    orch("token", "create", "ci", "--role", "viewer")

    without_tenant = orch("token", "create", "x", "--role", "submitter")
    taken = orch("token", "create", "ci", "--role", "viewer")
    unknown = orch("token", "revoke", "nobody")
    for_ever = orch("token", "create", "y", "--role", "viewer", "--expires", "1e300")

    assert [answer.code for answer in (without_tenant, taken, unknown, for_ever)] == [2, 4, 2, 2]
    assert "names its tenant" in without_tenant.err
    assert all(len(answer.err.splitlines()) == 1 for answer in (without_tenant, taken, unknown, for_ever))


def test_where_an_api_is_named_it_makes_the_token(orch: Orch, installation: Installation) -> None:
    """With the rights of who asks: a submitter's token makes none, and the audit has the admin's name."""
    made = orch("token", "create", "over-http", "--role", "submitter", "--tenant", "red", "--expires", "1h", "--json")
    secret = made.document["secret"]
    told = orch("whoami", "--json", ORCHESTRATOR_API_TOKEN=secret).document
    refused = orch("token", "list", ORCHESTRATOR_API_TOKEN=secret)
    listed = {one["name"]: one for one in orch("token", "list", "--json").document}
    lines = orch("audit", "--last", "9", "--json").document
    revoked = orch("token", "revoke", "over-http", "--json").document
    after = orch("whoami", ORCHESTRATOR_API_TOKEN=secret)

    assert set(made.document) == FIELDS["token create"]
    assert told == {"name": "over-http", "role": "submitter", "tenant": "red"}
    assert set(told) == FIELDS["whoami"]
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "admin" in refused.err
    assert (listed["over-http"]["created_by"], listed["over-http"]["tenant"]) == ("admin", "red")
    assert {line["actor"] for line in lines if line["action"] == "POST /tokens"} == {"admin"}
    assert set(lines[0]) == FIELDS["audit"]
    assert revoked == {"name": "over-http", "revoked": True}
    assert (after.code, after.err.count("\n")) == (2, 1)
    assert "POST /tokens" in orch("audit").out
    assert orch("whoami").out == "admin, admin\n"


def test_the_first_token_comes_from_the_database_also_where_an_api_is_named(tmp_path: Path) -> None:
    """That one does not answer, or wants a token that nobody has: --direct asks it nothing."""
    orch = home_with_schema(tmp_path)
    away = {"ORCHESTRATOR_API_URL": "http://127.0.0.1:9"}

    unanswered = orch("token", "create", "ci", "--role", "viewer", **away)
    direct = orch("token", "create", "ci", "--role", "viewer", "--direct", **away)

    assert unanswered.code == 3
    assert direct.out.startswith("orch_")
    assert [one["name"] for one in orch("token", "list", "--direct", "--json", **away).document] == ["ci"]
    assert orch("token", "revoke", "ci", "--direct", **away).out == "ci is revoked\n"
