"""What sweeps did, as people and metrics read it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True)
class SweepTally:
    """Passes of one sweep that have not been written down yet, and what the last one was like."""

    passes: int = 0
    did: int = 0
    failures: int = 0
    seconds: float = 0.0
    last_did: int = 0
    last_seconds: float = 0.0
    last_error: str | None = None  # None: the last pass ended well

    def note(self, did: int, *, seconds: float, error: str | None = None) -> None:
        """Add a pass."""
        self.passes += 1
        self.did += did
        self.failures += error is not None
        self.seconds += seconds
        self.last_did, self.last_seconds, self.last_error = did, seconds, error

    def add(self, later: "SweepTally") -> None:
        """Add the passes of another tally, which came after these."""
        self.passes += later.passes
        self.did += later.did
        self.failures += later.failures
        self.seconds += later.seconds
        self.last_did, self.last_seconds, self.last_error = later.last_did, later.last_seconds, later.last_error


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """All passes of one sweep, whoever led."""

    name: str
    passes: int
    did: int
    failures: int
    seconds: float
    last_at: datetime
    last_did: int
    last_seconds: float
    last_error: str | None
    epoch: int | None  # of the leader whose pass was the last
