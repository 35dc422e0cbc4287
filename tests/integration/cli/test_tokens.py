"""``orch token``: issue, list, revoke, and an API that knows them."""

from pathlib import Path

from orchestrator.storage.schema import upgrade
from tests.integration.cli.conftest import Orch
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
