"""What waits for the next commit of a worker's ledger, and what of it fits one transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from orchestrator.domain.cluster import GpuSample, GpuStanding
from orchestrator.domain.lease import (
    Claim,
    Finish,
    JobNote,
    LedgerBatch,
    LogChunk,
    Measured,
    PoolJoin,
    PoolResize,
    PoolUse,
    ProgressReport,
)
from orchestrator.ports import NodeRecord

#: Most rows of each kind in one transaction: long ones hold locks and delay renewals.
LARGEST_BATCH: Final = 256

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a heartbeat tells."""

    samples: Sequence[GpuSample]
    look_ahead: int
    standings: Mapping[str, GpuStanding]
    settled: bool


@dataclass(slots=True)
class Pending:
    """Work that the next commit takes along."""

    logs: list[LogChunk] = field(default_factory=list)
    progress: list[ProgressReport] = field(default_factory=list)
    notes: list[JobNote] = field(default_factory=list)
    finishes: list[Finish] = field(default_factory=list)
    releases: list[int] = field(default_factory=list)
    withdrawals: list[int] = field(default_factory=list)
    joins: list[PoolJoin] = field(default_factory=list)
    resizes: list[PoolResize] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    uses: dict[int, PoolUse] = field(default_factory=dict)  # by lease
    renewals: tuple[list[int], Sequence[Measured]] | None = None
    registration: NodeRecord | None = None
    heartbeat: Heartbeat | None = None
    errands: list[Callable[[], object]] = field(default_factory=list)

    def any_rows(self) -> bool:
        """Tell whether there is anything for a batch."""
        said = self.logs or self.progress or self.notes
        asked = self.finishes or self.releases or self.withdrawals or self.joins or self.resizes or self.claims
        return bool(said or asked or self.uses)

    def anything(self) -> bool:
        """Tell whether there is anything to do."""
        others = (self.registration, self.renewals, self.heartbeat)
        return self.any_rows() or bool(self.errands) or any(one is not None for one in others)

    def take_batch(self) -> LedgerBatch:
        """Cut off what fits one transaction; a lease is released only once all finishes before it are taken."""
        batch = LedgerBatch(
            logs=tuple(_cut(self.logs, LARGEST_BATCH)),
            progress=tuple(_cut(self.progress, LARGEST_BATCH)),
            notes=tuple(_cut(self.notes, LARGEST_BATCH)),
            finishes=tuple(_cut(self.finishes, LARGEST_BATCH)),
        )
        if self.finishes or self.logs:
            return batch
        return replace(
            batch,
            releases=tuple(_cut(self.releases, LARGEST_BATCH)),
            withdrawals=tuple(_cut(self.withdrawals, LARGEST_BATCH)),
            joins=tuple(_cut(self.joins, LARGEST_BATCH)),
            resizes=tuple(_cut(self.resizes, LARGEST_BATCH)),
            claims=tuple(_cut_claims(self.claims)),
            uses=tuple(self._take_uses()),
        )

    def _take_uses(self) -> list[PoolUse]:
        taken = list(self.uses.values())
        self.uses.clear()
        return taken


@dataclass(frozen=True, slots=True)
class Taken:
    """Work that the thread has in hand."""

    registration: NodeRecord | None
    renewals: tuple[list[int], Sequence[Measured]] | None
    heartbeat: Heartbeat | None
    batch: LedgerBatch
    errands: list[Callable[[], object]]


def _cut(rows: list[_Row], most: int) -> list[_Row]:
    taken = rows[:most]
    del rows[:most]
    return taken


def _cut_claims(claims: list[Claim]) -> list[Claim]:
    taken: list[Claim] = []
    jobs = 0
    while claims and (not taken or jobs + len(claims[0].job_seqs) <= LARGEST_BATCH):
        taken.append(claims.pop(0))
        jobs += len(taken[-1].job_seqs)
    return taken
