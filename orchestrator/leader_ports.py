"""Who leads, and what its sweeps did, as protocols; ``storage`` implements them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from orchestrator.domain.sweep import SweepRecord, SweepTally


@dataclass(frozen=True, slots=True)
class Term:
    """Leadership as the database sees it."""

    holder: str
    epoch: int
    mine: bool
    since: datetime | None = None  # its first instant; None when it has just begun
    guarded: bool = False  # the holder's session also holds the lock that ends with it


class Leadership(Protocol):
    """One leader at a time; the row is the authority, its epoch fences each sweep."""

    def campaign(self, holder: str, *, ttl: timedelta) -> Term:
        """Renew the term, or take over if the row has expired or its holder's session has ended.

        The answer names whoever leads.
        """
        ...

    def resign(self, holder: str, epoch: int) -> None: ...

    def current(self) -> Term | None: ...

    def is_deserted(self, holder: str) -> bool:
        """The session of a leader whose term is guarded has ended, so ``holder`` need not wait for its expiry."""
        ...

    def is_shaken(self, holder: str) -> bool:
        """The session that guards the term of ``holder`` has ended: another may lead already. Asks nobody."""
        ...


class SweepLog(Protocol):
    """Where every process reads what the leader's sweeps did."""

    def note(self, tallies: Mapping[str, SweepTally], *, epoch: int | None) -> None:
        """Add passes, by the name of their sweep."""
        ...

    def read(self) -> Sequence[SweepRecord]:
        """Return the record of each sweep that ever ran, by name."""
        ...
