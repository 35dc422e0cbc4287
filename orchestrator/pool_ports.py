"""What worker pools need of the outside world; ``storage`` implements it. Errors are those of ``ports``."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from orchestrator.domain.pool import Pool, PoolChange, PoolSpec, PoolStanding
from orchestrator.scheduling.pools import Decision


class PoolStore(Protocol):
    """The pools, their runners and their loads."""

    def start(self, name: str, spec: PoolSpec, *, by: str) -> bool:
        """Create a pool, or start one again that was told to leave; one that serves and is the same stays as it is.

        True if it was created; False if there was one of this name already.

        Raises:
            PoolExists: If it serves, and differs.
        """
        ...

    def change(self, name: str, change: PoolChange, *, by: str, version: int | None = None) -> Pool:
        """Change a pool.

        Raises:
            UnknownPool: If there is none of this name.
            InvalidPool: With everything that is wrong with the change.
            StaleVersion: If a version is given and the pool has another one.
        """
        ...

    def remove(self, name: str, *, by: str) -> None:
        """Forget a pool that has stopped.

        Raises:
            UnknownPool: If there is none of this name.
            Conflict: If it has not stopped.
        """
        ...

    def standing(self, name: str) -> PoolStanding:
        """Return one pool with its runners and loads; raises ``UnknownPool``."""
        ...

    def standings(self, *, tenant: str | None = None) -> tuple[datetime, Sequence[PoolStanding]]:
        """Return the database's clock and every pool, by name, or those that serve a tenant."""
        ...

    def new_loads(self, pool: Pool, job_ids: Sequence[str], *, epoch: int) -> None:
        """Remember loads that are about to be submitted, for the pool's generation."""
        ...

    def apply(self, decision: Decision, *, epoch: int) -> bool:
        """Store what was decided for a pool; False if somebody changed it since: then nothing is stored."""
        ...
