"""What is kept of the leader's sweeps, as a protocol; ``storage`` implements it."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from orchestrator.domain.sweep import SweepRecord, SweepTally


class SweepLog(Protocol):
    """Where every process reads what the leader's sweeps did."""

    def note(self, tallies: Mapping[str, SweepTally], *, epoch: int | None) -> None:
        """Add passes, by the name of their sweep."""
        ...

    def read(self) -> Sequence[SweepRecord]:
        """Return the record of each sweep that ever ran, by name."""
        ...
