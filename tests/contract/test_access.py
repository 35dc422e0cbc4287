"""Tokens and the audit, on every database."""

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.domain.access import AuditEntry, Role, Token
from orchestrator.errors import NameTaken, NotLeading
from orchestrator.storage.access import SqlAccessStore
from tests.contract.conftest import Stores
from tests.support.waiting import wait_for


@pytest.fixture
def access(stores: Stores) -> SqlAccessStore:
    return SqlAccessStore(stores.database)


def line(action: str = "token create", target: str = "ci") -> AuditEntry:
    return AuditEntry("request-1", "ann", Role.ADMIN, None, action, target, "done")


def create(access: SqlAccessStore, id: str = "0123456789ab", name: str = "ci", **options: Any) -> Token:
    given: dict[str, Any] = {"hash": "h" * 64, "role": Role.VIEWER, "tenant": None, "requests_per_minute": None}
    return access.create_token(id=id, name=name, **given | {"life": None, "audit": line()} | options)


def test_a_token_is_found_by_its_id(access: SqlAccessStore) -> None:
    made = create(access, role=Role.SUBMITTER, tenant="blue", requests_per_minute=60, life=timedelta(days=1))

    found = access.live_token(made.id)

    assert found is not None
    assert (found.name, found.role, found.tenant, found.requests_per_minute) == ("ci", Role.SUBMITTER, "blue", 60)
    assert (found.created_by, found.hash, found.revoked_at) == ("ann", "h" * 64, None)
    assert found.expires_at is not None
    assert abs(found.expires_at - found.created_at - timedelta(days=1)) < timedelta(seconds=2)
    assert access.live_token("ffffffffffff") is None


def test_a_token_expires_by_the_databases_clock(access: SqlAccessStore) -> None:
    create(access, life=timedelta(milliseconds=300))

    wait_for(lambda: access.live_token("0123456789ab") is None, within_seconds=30, describe="the token expires")


def test_a_revoked_token_is_not_found(access: SqlAccessStore) -> None:
    create(access)

    assert access.revoke_token("ci", audit=line("token revoke"))
    assert access.live_token("0123456789ab") is None
    assert not access.revoke_token("ci", audit=line("token revoke"))
    (stored,) = access.tokens()
    assert stored.revoked_at is not None
    assert [entry.action for entry in access.audit(before_seq=None, limit=9)] == ["token revoke", "token create"]


def test_tokens_in_force_are_told_from_those_that_have_ended(access: SqlAccessStore) -> None:
    """With one look, which counts as no use of them."""
    ids = [f"0123456789a{number}" for number in range(3)]
    create(access, ids[0], "stays")
    create(access, ids[1], "revoked")
    create(access, ids[2], "expires", life=timedelta(milliseconds=300))
    assert access.revoke_token("revoked", audit=line("token revoke"))

    wait_for(lambda: ids[2] not in access.live_ids(ids), within_seconds=30, describe="the token expires")
    assert set(access.live_ids([*ids, "ffffffffffff"])) == {ids[0]}
    assert {token.last_used_at for token in access.tokens()} == {None}


def test_use_is_noted_at_most_once_a_minute(access: SqlAccessStore) -> None:
    create(access)
    access.live_token("0123456789ab")
    first = access.tokens()[0].last_used_at
    access.live_token("0123456789ab")

    assert first is not None
    assert access.tokens()[0].last_used_at == first


def test_names_are_used_once_and_differ_by_case(access: SqlAccessStore) -> None:
    create(access)
    create(access, id="0123456789ac", name="CI")

    with pytest.raises(NameTaken):
        create(access, id="0123456789ad")
    assert len(access.audit(before_seq=None, limit=9)) == 2, "nothing was made, so there is no line about it"


def test_the_audit_is_read_newest_first_by_pages(access: SqlAccessStore) -> None:
    for number in range(5):
        access.note(line(target=f"{number} ünïcode"))

    first = access.audit(before_seq=None, limit=2)
    second = access.audit(before_seq=first[-1].seq, limit=9)

    assert [entry.target[0] for entry in [*first, *second]] == ["4", "3", "2", "1", "0"]
    assert first[0].at is not None
    assert (first[0].request_id, first[0].role, first[0].tenant) == ("request-1", "admin", None)


def test_long_words_of_a_caller_are_cut(access: SqlAccessStore) -> None:
    access.note(line(action="GET " + "/x" * 500, target="t" * 5000))

    (entry,) = access.audit(before_seq=None, limit=9)
    assert (len(entry.action), len(entry.target)) == (128, 512)


def test_lines_of_the_audit_are_pruned_by_their_age_the_oldest_first(stores: Stores, access: SqlAccessStore) -> None:
    """By the leader alone, a bounded number at once, and no job's retention decides about them."""
    epoch = stores.lead()
    for number in range(5):
        access.note(line(target=str(number)))

    def prune(age: timedelta, limit: int = 2, epoch: int = epoch) -> int:
        return stores.admission.prune_audit(older_than=age, limit=limit, epoch=epoch)

    assert stores.admission.prune(older_than=timedelta(seconds=-60), limit=9, epoch=epoch) == 0
    assert prune(timedelta(hours=1)) == 0
    with pytest.raises(NotLeading):
        prune(timedelta(seconds=-60), epoch=epoch + 1)
    assert [entry.target for entry in access.audit(before_seq=None, limit=9)] == ["4", "3", "2", "1", "0"]
    assert prune(timedelta(seconds=-60)) == 2
    assert [entry.target for entry in access.audit(before_seq=None, limit=9)] == ["4", "3", "2"]
    assert prune(timedelta(seconds=-60), limit=9) == 3
