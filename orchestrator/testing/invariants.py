"""The invariants by name, and what a check says when one does not hold.

docs/reliability.md tells of each how it is checked; the names are stable.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Final

#: Safety: holds at any instant, whatever died or was paused, on every history.
SAFETY: Final[Mapping[str, str]] = {
    "acknowledged-job-exists": "A job whose submit was acknowledged is there until it is pruned with all that is its.",
    "legal-path": "The states of a job follow the transition table, from its submit to the state of its row.",
    "one-end": "A terminal state is written once and never left, but for a dead letter that a person revives,"
    " which is an event.",
    "waits-in-one-place": "A job is in exactly the table of what waits that its state names, or in none.",
    "blocked-needs": "A blocked job needs something, and nothing that ended without success; no other job needs any.",
    "outbox": "A queued job carries the instant at which its entry is looked for, and a pending one does not.",
    "one-attempt": "Of one job at most one attempt runs; a claim follows the end of the attempt before it.",
    "attempts-counted": "Attempt numbers grow by one from 1, and each attempt is recorded as it was claimed and ended.",
    "losses-counted": "Every loss counts against the bound for lost attempts, unless the job stood behind another one.",
    "attempts-bounded": "A job's own code fails at most as often as its owner allowed.",
    "fenced-end": "An attempt is ended only under the token of the latest claim.",
    "live-token": "What a worker writes counts only while its lease is live by the database's clock.",
    "fenced-output": "No output is accepted for an attempt after its end.",
    "claim-under-live-lease": "A claim is made under a lease of the same host that is live.",
    "gang-whole": "A job starts with every GPU that it asked for, or not at all.",
    "running-under-lease": "A running job's lease is the one of its latest claim, and is active.",
    "loss-ends-lease": "An attempt is taken for lost with its lease only when that lease has ended.",
    "cancel-heeded": "A job does not start after its cancel was acknowledged.",
    "not-before-time": "A job that waits for an instant is released at that instant or later.",
    "deadline-kept": "A job does not start after its deadline, and is given up for it only then.",
    "lease-consistent": "A lease is active, or ended with an instant, and its GPUs agree with it.",
    "ended-lease-rests": "A lease that has ended is never renewed.",
    "expired-past-end": "A lease is expired only when it is past its end by the database's clock.",
    "gpu-exclusive": "A GPU under an exclusive lease is under no other lease.",
    "gpu-capacity": "Shared leases of a GPU never reserve more memory than it has.",
    "gpu-tokens-grow": "Each lease of a GPU has a larger token than the one before it.",
    "gpu-row-agrees": "A GPU's row names exactly the leases that hold it.",
    "one-leader": "Each leader's term has an epoch of its own, larger by one than the one before.",
    "fenced-sweeps": "Only the holder of the current epoch commits sweeps.",
    "runner-exclusive": "Two runners are never alive together on an exclusively leased GPU.",
    "runner-under-lease": "A runner's token is a lease of its GPUs and of its attempt, and outlives the runner.",
}
#: Liveness: asked for when everything should have come to rest, or a leader has been at work.
LIVENESS: Final[Mapping[str, str]] = {
    "settled": "Every job has reached a terminal state.",
    "no-overdue": "Nothing that a leader has to act on is overdue by more than the bound.",
    "entry-reachable": "A queued job's entry is in its stream, or is about to be published.",
}
INVARIANTS: Final[Mapping[str, str]] = {**SAFETY, **LIVENESS}

#: Longest time between two statements of one transaction that was committed: the session's idle_transaction_timeout.
#: What a transaction checked in its first statement can so much later no longer be true in its last one.
TRANSACTION_SLACK: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Violation:
    """One place where an invariant does not hold."""

    invariant: str
    subject: str  # "job ID", "lease 7", "gpu UUID", "epoch 3"
    seen: str
    where: str = ""  # event numbers, file and line

    def __post_init__(self) -> None:
        assert self.invariant in INVARIANTS, self.invariant

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.invariant}: {self.subject}: {self.seen}{place}"

    def to_document(self) -> dict[str, str]:
        """Return it as JSON can carry it."""
        return asdict(self)
