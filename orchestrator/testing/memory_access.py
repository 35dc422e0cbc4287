"""Tokens and audit in memory: an ``AccessStore`` that keeps the rules that services rely on."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta

from orchestrator.domain.access import AuditEntry, Role, Token
from orchestrator.errors import NameTaken, StoreUnavailable
from orchestrator.testing.clock import FakeClock


class MemoryAccess:
    """``AccessStore``: tokens by id, on a clock that stands for the database's."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._tokens: dict[str, Token] = {}
        self.lines: list[AuditEntry] = []
        self.reads = 0
        self.down = False

    def create_token(
        self,
        *,
        id: str,
        name: str,
        hash: str,
        role: Role,
        tenant: str | None,
        requests_per_minute: int | None,
        life: timedelta | None,
        audit: AuditEntry,
    ) -> Token:
        """Store a token."""
        self._answer()
        if any(token.name == name for token in self._tokens.values()):
            raise NameTaken(name)
        now = self._clock.now()
        token = Token(
            id=id,
            name=name,
            role=role,
            tenant=tenant,
            requests_per_minute=requests_per_minute,
            created_by=audit.actor,
            created_at=now,
            expires_at=None if life is None else now + life,
            revoked_at=None,
            last_used_at=None,
            hash=hash,
        )
        self._tokens[id] = token
        self.note(audit)
        return token

    def live_token(self, id: str) -> Token | None:
        """Return a token that is in force."""
        self._answer()
        self.reads += 1
        token = self._tokens.get(id)
        if token is None or not self._is_live(token):
            return None
        self._tokens[id] = replace(token, last_used_at=self._clock.now())
        return token

    def live_ids(self, ids: Collection[str]) -> Collection[str]:
        """Return which of these are in force."""
        self._answer()
        self.reads += 1
        return frozenset(id for id in ids if id in self._tokens and self._is_live(self._tokens[id]))

    def tokens(self) -> Sequence[Token]:
        """Return every token by name."""
        self._answer()
        return sorted(self._tokens.values(), key=lambda token: token.name)

    def revoke_token(self, name: str, *, audit: AuditEntry) -> bool:
        """End a token."""
        self._answer()
        for id, token in self._tokens.items():
            if token.name == name and token.revoked_at is None:
                self._tokens[id] = replace(token, revoked_at=self._clock.now())
                self.note(audit)
                return True
        return False

    def note(self, entry: AuditEntry) -> None:
        """Append to the audit."""
        self._answer()
        self.lines.append(replace(entry, seq=len(self.lines) + 1, at=self._clock.now()))

    def audit(self, *, before_seq: int | None, limit: int) -> Sequence[AuditEntry]:
        """Return what was done, newest first."""
        self._answer()
        return [line for line in reversed(self.lines) if before_seq is None or (line.seq or 0) < before_seq][:limit]

    def _is_live(self, token: Token) -> bool:
        return token.revoked_at is None and (token.expires_at is None or token.expires_at > self._clock.now())

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("down")
