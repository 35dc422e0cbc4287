"""What ad hoc leases need of the outside world; ``storage`` implements it. Errors are those of ``ports``."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from orchestrator.domain.adhoc import AdHocLease
from orchestrator.domain.lease import LeaseGrant


@dataclass(frozen=True, slots=True)
class Holder:
    """Who is to hold a lease."""

    name: str
    tenant: str
    holder: str
    token_hash: str
    key: str | None  # names the lease as long as it is live, for who did not hear the answer
    digest: str | None = None  # of the request: the same key with another one is a mistake


class AdHocLeases(Protocol):
    """Leases without a job; the database's clock alone says whether one is live."""

    def grant(self, node: str, grant: LeaseGrant, holder: Holder, *, ttl: timedelta) -> AdHocLease | None:
        """Take every GPU of the grant on a host that takes new work, or none and return None.

        If meanwhile a lease was granted under the same key, that one is returned, as by ``again``.
        """
        ...

    def again(self, holder: Holder) -> AdHocLease | None:
        """Return the live lease of the holder's key, renewed, and from now on held under the holder's token alone.

        None if there is no such lease, or no key.

        Raises:
            IdempotencyConflict: If the lease was granted to another request.
        """
        ...

    def find(self, token_hash: str) -> AdHocLease:
        """Return the lease of this token; raises ``UnknownLease``."""
        ...

    def confirm(self, lease_id: int, refusal: str | None) -> None:
        """Its host has made sure that nothing else is on the GPUs, or says why it cannot; the first word counts."""
        ...

    def renew(self, token_hash: str, *, tenant: str | None = None) -> AdHocLease:
        """Extend a live lease by its TTL; with a tenant, one of that tenant alone.

        Raises:
            UnknownLease: If there is none of this token.
            LeaseLost: If it has ended, or is past its end.
        """
        ...

    def release(
        self, token_hash: str | None, *, lease_id: int | None = None, tenant: str | None = None, by: str
    ) -> AdHocLease:
        """End a lease, named by its token's hash or its number; one that has ended stays as it is.

        With a tenant, one of that tenant alone.

        Raises:
            UnknownLease: If there is none.
        """
        ...

    def leases(
        self, *, tenant: str | None = None, active: bool = True, before: int | None = None, limit: int = 100
    ) -> Sequence[AdHocLease]:
        """Return leases, newest first; ``before`` is the cursor."""
        ...
