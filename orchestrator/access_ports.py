"""What services need of the place where tokens and the audit are kept; a part of ``ports``, and as its stores are."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Protocol

from orchestrator.domain.access import AuditEntry, Role, Token


class AccessStore(Protocol):
    """Tokens, and the audit, which is only ever appended to."""

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
        """Store a token and the line about it, by the database's clock; ``NameTaken`` if the name was ever used."""
        ...

    def live_token(self, id: str) -> Token | None:
        """Return a token that is neither revoked nor expired by the database's clock; note its use, to the minute."""
        ...

    def live_ids(self, ids: Collection[str]) -> Collection[str]:
        """Return which of these tokens are neither revoked nor expired by the database's clock; notes no use."""
        ...

    def tokens(self) -> Sequence[Token]: ...

    def revoke_token(self, name: str, *, audit: AuditEntry) -> bool:
        """End a token, with the line about it; False, and no line, if there is none in force."""
        ...

    def note(self, entry: AuditEntry) -> None: ...

    def audit(self, *, before_seq: int | None, limit: int) -> Sequence[AuditEntry]: ...
