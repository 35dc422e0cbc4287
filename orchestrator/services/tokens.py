"""Issue tokens and find out whom a secret stands for."""

import hmac
import secrets
from collections import OrderedDict
from datetime import datetime, timedelta
from threading import Lock
from typing import Final

from orchestrator.domain.access import ID_BYTES, SECRET_BYTES, Principal, Role, Token, hash_of, id_of, make_secret
from orchestrator.domain.access import scope_faults as _scope_faults
from orchestrator.domain.request_checks import Checks
from orchestrator.errors import InvalidToken, UnknownToken
from orchestrator.runtime import Runtime

#: A process trusts what it read so long: a revoked token ends within it, a busy one costs no query a request.
TRUST_SECONDS: Final = 2.0
MOST_CACHED: Final = 1024
LONGEST_LIFE: Final = timedelta(days=3650)


class TokenService:
    """Issues, ends and recognises tokens; keep one a process, safe to share between threads."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
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
            NameTaken: If a token, live or not, has this name.
        """
        checks = Checks()
        checks.word("name", name, longest=64)
        if tenant is not None:
            checks.word("tenant", tenant, longest=64)
        if requests_per_minute is not None and not 1 <= requests_per_minute <= 1_000_000:
            checks.faults.append("requests_per_minute: must be from 1 to 1000000")
        if life is not None and not timedelta(0) < life <= LONGEST_LIFE:
            checks.faults.append("expires_in: must be more than 0 and at most ten years")
        if faults := [*checks.faults, *_scope_faults(role, tenant)]:
            raise InvalidToken(faults)
        id, secret = make_secret(secrets.token_bytes(ID_BYTES + SECRET_BYTES))
        expires_at: datetime | None = None if life is None else self._runtime.clock.now() + life
        token = self._runtime.access.create_token(
            id=id,
            name=name,
            hash=hash_of(secret),
            role=role,
            tenant=tenant,
            requests_per_minute=requests_per_minute,
            created_by=by,
            expires_at=expires_at,
        )
        return token, secret

    def revoke(self, name: str) -> None:
        """End a token: here at once, in other processes within ``TRUST_SECONDS``.

        Raises:
            UnknownToken: If no live token has this name.
        """
        if not self._runtime.access.revoke_token(name):
            raise UnknownToken(name)
        with self._lock:
            self._known.clear()

    def recognise(self, secret: str) -> Principal | None:
        """Return whom a secret stands for, None for nobody."""
        id = id_of(secret)
        if id is None:
            return None
        digest, now = hash_of(secret), self._runtime.clock.monotonic()
        with self._lock:
            until, principal = self._known.get(digest, (now, None))
        if principal is not None and now < until:
            return principal
        token = self._runtime.access.live_token(id)
        if token is None or not hmac.compare_digest(token.hash, digest):
            with self._lock:
                self._known.pop(digest, None)
            return None
        with self._lock:
            self._known[digest] = (now + TRUST_SECONDS, token.principal())
            self._known.move_to_end(digest)
            while len(self._known) > MOST_CACHED:
                self._known.popitem(last=False)
        return token.principal()
