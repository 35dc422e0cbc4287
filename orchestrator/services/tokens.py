"""Issue tokens and find out whom a secret stands for."""

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Collection
from datetime import timedelta
from threading import Lock
from typing import Final

from orchestrator.access_ports import AccessStore
from orchestrator.clock import Clock
from orchestrator.domain.access import (
    ID_BYTES,
    SECRET_BYTES,
    AuditEntry,
    Principal,
    Role,
    Token,
    hash_of,
    id_of,
    make_secret,
    scope_faults,
)
from orchestrator.domain.request_checks import Checks
from orchestrator.errors import InvalidToken, UnknownToken

#: A process trusts what it read so long: a revoked token ends within it, a busy one costs no query a request.
TRUST_SECONDS: Final = 2.0
MOST_CACHED: Final = 1024
LONGEST_LIFE: Final = timedelta(days=3650)
MOST_REQUESTS: Final = 1_000_000


class TokenService:
    """Issues, ends and recognises tokens; keep one a process, safe to share between threads."""

    def __init__(self, store: AccessStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._known: OrderedDict[str, tuple[float, Principal]] = OrderedDict()  # hash -> trusted until, whom
        self._lock = Lock()

    def create(
        self,
        name: str,
        *,
        role: Role,
        tenant: str | None = None,
        life: timedelta | None = None,
        requests_per_minute: int | None = None,
        by: str,
    ) -> tuple[Token, str]:
        """Store a new token and return it with its secret, which is not kept.

        Raises:
            InvalidToken: Listing what is wrong with the request.
            NameTaken: If a token, in force or not, has this name.
        """
        checks = Checks()
        checks.word("name", name, longest=64)
        checks.optional_word("tenant", tenant, longest=64)
        checks.optional_whole("requests_per_minute", requests_per_minute, 1, MOST_REQUESTS)
        if life is not None and not timedelta(0) < life <= LONGEST_LIFE:
            checks.add("expires_in", "must be more than 0 and at most ten years")
        if faults := [*checks.faults, *scope_faults(role, tenant)]:
            raise InvalidToken(faults)
        id, secret = make_secret(secrets.token_bytes(ID_BYTES + SECRET_BYTES))
        token = self._store.create_token(
            id=id,
            name=name,
            hash=hash_of(secret),
            role=role,
            tenant=tenant,
            requests_per_minute=requests_per_minute,
            life=life,
            audit=AuditEntry("", by, Role.ADMIN, tenant, "token create", f"{name} as {role}", "done"),
        )
        return token, secret

    def revoke(self, name: str, *, by: str) -> None:
        """End a token: here at once, in other processes within ``TRUST_SECONDS``.

        Raises:
            UnknownToken: If no token in force has this name.
        """
        if not self._store.revoke_token(name, audit=AuditEntry("", by, Role.ADMIN, None, "token revoke", name, "done")):
            raise UnknownToken(name)
        with self._lock:
            self._known.clear()

    def trusted(self, secret: str) -> Principal | None:
        """Return whom a secret stands for if that was looked up a moment ago; asks nobody."""
        with self._lock:
            until, principal = self._known.get(hash_of(secret), (0.0, None))
        return principal if principal is not None and self._clock.monotonic() < until else None

    def recognise(self, secret: str) -> Principal | None:
        """Return whom a secret stands for, None for nobody.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        if (id := id_of(secret)) is None:
            return None
        if (known := self.trusted(secret)) is not None:
            return known
        digest, asked_at = hash_of(secret), self._clock.monotonic()
        token = self._store.live_token(id)
        if token is None or not hmac.compare_digest(token.hash, digest):
            with self._lock:
                self._known.pop(digest, None)
            return None
        with self._lock:
            self._known[digest] = (asked_at + TRUST_SECONDS, token.principal())
            self._known.move_to_end(digest)
            while len(self._known) > MOST_CACHED:
                self._known.popitem(last=False)
        return token.principal()

    def ended(self, ids: Collection[str]) -> Collection[str]:
        """Return which of these tokens are in force no longer, with one look; they are recognised here no more.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        ended = frozenset(ids) - frozenset(self._store.live_ids(ids))
        if ended:
            with self._lock:
                for digest, (_until, principal) in list(self._known.items()):
                    if principal.token_id in ended:
                        del self._known[digest]
        return ended
