"""Tokens: what is issued, what is recognised, and for how long."""

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.domain.access import ID_BYTES, SECRET_BYTES, Role, hash_of, id_of, make_secret
from orchestrator.errors import InvalidToken, NameTaken, StoreUnavailable, UnknownToken
from orchestrator.services import tokens
from orchestrator.services.tokens import TRUST_SECONDS, TokenService
from orchestrator.testing.clock import FakeClock
from orchestrator.testing.memory_access import MemoryAccess


class World:
    """A service over tokens in memory."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryAccess(self.clock)
        self.service = TokenService(self.store, self.clock)

    def create(self, name: str = "ci", **options: Any) -> str:
        return self.service.create(name, **{"role": Role.ADMIN, "by": "test"} | options)[1]


@pytest.fixture
def world() -> World:
    return World()


def test_a_secret_stands_for_whom_it_was_made_for(world: World) -> None:
    secret = world.create("ci", role=Role.SUBMITTER, tenant="blue", requests_per_minute=7)

    found = world.service.recognise(secret)

    assert found is not None
    assert (found.name, found.role, found.tenant, found.requests_per_minute) == ("ci", Role.SUBMITTER, "blue", 7)
    assert found.sees("blue")
    assert not found.sees("red")


def test_the_secret_itself_is_not_kept(world: World) -> None:
    secret = world.create()
    (stored,) = world.store.tokens()

    assert stored.hash == hash_of(secret)
    assert secret not in repr(world.store.tokens()) + repr(world.store.lines)
    assert stored.id in secret


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_part_of_a_secret_is_nobodys_and_asks_nobody(world: World, cut: int) -> None:
    """The checksum tells: a mistyped secret costs no query."""
    secret = world.create()

    assert world.service.recognise(secret[:cut]) is None
    assert world.store.reads == 0


def test_another_secret_with_the_same_id_is_nobodys(world: World) -> None:
    """The id is public; a secret made up around it has a good checksum and the wrong hash."""
    id = id_of(world.create())
    assert id is not None
    _id, forged = make_secret(bytes.fromhex(id) + b"\0" * SECRET_BYTES)

    assert id_of(forged) == id
    assert world.service.recognise(forged) is None


def test_a_busy_token_is_read_once_in_a_while(world: World) -> None:
    secret = world.create()
    for _ in range(100):
        assert world.service.recognise(secret) is not None
    assert world.store.reads == 1

    world.clock.advance(timedelta(seconds=TRUST_SECONDS))
    assert world.service.recognise(secret) is not None
    assert world.store.reads == 2


def test_a_revoked_token_ends_at_once_here_and_soon_elsewhere(world: World) -> None:
    secret = world.create()
    elsewhere = TokenService(world.store, world.clock)
    assert elsewhere.recognise(secret) is not None

    world.service.revoke("ci", by="test")

    assert world.service.recognise(secret) is None
    world.clock.advance(timedelta(seconds=TRUST_SECONDS))
    assert elsewhere.recognise(secret) is None


def test_a_token_expires(world: World) -> None:
    secret = world.create(life=timedelta(hours=1))
    assert world.service.recognise(secret) is not None

    world.clock.advance(timedelta(hours=1))

    assert world.service.recognise(secret) is None


def test_what_was_trusted_is_not_trusted_longer_while_the_database_is_away(world: World) -> None:
    secret = world.create()
    world.service.recognise(secret)
    world.store.down = True
    assert world.service.recognise(secret) is not None

    world.clock.advance(timedelta(seconds=TRUST_SECONDS))
    with pytest.raises(StoreUnavailable):
        world.service.recognise(secret)


def test_one_look_tells_which_of_many_tokens_have_ended_and_they_are_trusted_no_more(world: World) -> None:
    """By their ids, as the callers that stay are known."""
    secrets = {name: world.create(name) for name in ("stays", "gone")}
    ids = {
        name: principal.token_id for name, secret in secrets.items() if (principal := world.service.recognise(secret))
    }
    TokenService(world.store, world.clock).revoke("gone", by="another process")
    reads = world.store.reads

    assert set(world.service.ended([id for id in ids.values() if id])) == {ids["gone"]}
    assert world.store.reads == reads + 1
    assert world.service.trusted(secrets["gone"]) is None
    assert world.service.trusted(secrets["stays"]) is not None


def test_a_secret_is_compared_in_constant_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hash is, and that comparison alone decides."""
    secret = world.create()
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda stored, given: False)
    assert world.service.recognise(secret) is None

    asked: list[str] = []
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda stored, given: asked.extend((stored, given)) or True)
    assert world.service.recognise(secret) is not None
    assert asked == [hash_of(secret), hash_of(secret)]


def test_a_name_is_used_once(world: World) -> None:
    """The audit names tokens: a second bearer of a name would be taken for the first."""
    world.create("ci")
    world.service.revoke("ci", by="test")

    with pytest.raises(NameTaken):
        world.create("ci")


def test_what_is_not_there_cannot_be_revoked(world: World) -> None:
    with pytest.raises(UnknownToken):
        world.service.revoke("ci", by="test")
    assert world.store.lines == []


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"role": Role.SUBMITTER}, "tenant"),
        ({"role": Role.OPERATOR, "tenant": "blue"}, "tenant"),
        ({"role": Role.ADMIN, "tenant": "blue"}, "tenant"),
        ({"name": "a b"}, "name"),
        ({"name": ""}, "name"),
        ({"tenant": "x" * 65, "role": Role.VIEWER}, "tenant"),
        ({"life": timedelta(0)}, "expires_in"),
        ({"life": timedelta(days=5000)}, "expires_in"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_request_is_told(world: World, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        world.create(**options)

    assert [one.partition(":")[0] for one in caught.value.faults] == [fault]
    assert list(world.store.tokens()) == []


def test_every_change_has_a_line(world: World) -> None:
    world.create("ci", by="cli:ann")
    world.service.revoke("ci", by="cli:ben")

    assert [(line.actor, line.action, line.target) for line in world.store.lines] == [
        ("cli:ann", "token create", "ci as admin"),
        ("cli:ben", "token revoke", "ci"),
    ]


def test_each_role_covers_those_below_it() -> None:
    names = [role for role in Role if Role.OPERATOR.covers(role)]

    assert names == [Role.VIEWER, Role.SUBMITTER, Role.OPERATOR]


def test_a_secret_needs_its_random_bytes() -> None:
    with pytest.raises(ValueError, match="random bytes"):
        make_secret(b"\0" * ID_BYTES)
