"""Who used how much of the GPUs: GPU-seconds leased, busy and wasted, folded from leases and attempts.

Every second of a lease on each of its GPUs is somebody's: it is divided among the attempts that ran under the lease by
how long each ran, so that the sum over jobs is the sum over GPUs. A share counts as its part of the GPU's memory.
Nobody was busy for longer than it had leased: what was measured beyond that, by another clock, does not count.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

#: What no attempt accounts for: a lease whose jobs were given back unstarted.
NOBODY: Final = "-"
_SUCCEEDED: Final = "succeed"


class UsageKey(StrEnum):
    """By what usage is summed up."""

    TENANT = "tenant"
    USER = "user"
    JOB = "job"
    QUEUE = "queue"
    NODE = "node"
    GPU = "gpu"


@dataclass(frozen=True, slots=True)
class AttemptUse:
    """One attempt under a lease."""

    job_id: str
    tenant: str
    user: str
    queue: str
    begun_at: datetime
    ended_at: datetime | None  # None: it runs
    outcome: str | None  # the JobEvent that ended it
    busy_gpu_seconds: float | None  # None: the driver does not tell


@dataclass(frozen=True, slots=True)
class HolderUse:
    """Who held a lease without a job."""

    lease_id: int
    tenant: str
    user: str


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """One lease: what it held, how long, and for whom."""

    id: int
    node: str
    granted_at: datetime
    ended_at: datetime | None  # None: it is held
    shares: tuple[tuple[str, float], ...]  # GPU uuid -> part of the GPU, 1.0 for all of it
    attempts: tuple[AttemptUse, ...]
    holder: HolderUse | None = None  # of a lease without a job


@dataclass(slots=True)
class Usage:
    """The sums of one key, in GPU-seconds."""

    key: str
    leased: float = 0.0
    busy: float = 0.0  # by sampled utilization, where the driver tells it
    wasted: float = 0.0  # leased by attempts that did not succeed, whatever the reason
    attempts: int = 0
    jobs: set[str] = field(default_factory=set)


def fold_usage(
    leases: Iterable[LeaseUse], *, by: UsageKey, since: datetime, until: datetime, tenant: str | None = None
) -> tuple[tuple[Usage, ...], Usage]:
    """Return the usage of each key, the largest first, and the total.

    Args:
        leases: Those that overlap the window.
        by: What to sum up by.
        since: Start of the window; only the seconds within it count.
        until: Its end; what is held or runs counts up to here.
        tenant: Only what its jobs used, of leases that others' jobs used too.
    """
    sums: dict[str, Usage] = {}
    total = Usage("total")
    for lease in leases:
        for part in _parts(lease, since, until):
            if tenant is not None and part.tenant != tenant:
                continue
            for usage in (sums.setdefault(_key(part, by), Usage(_key(part, by))), total):
                usage.leased += part.seconds
                usage.busy += part.busy
                usage.wasted += part.seconds if part.is_wasted else 0.0
                if part.attempt is not None:
                    usage.jobs.add(part.attempt.job_id)
        attempts = [one for one in lease.attempts if tenant in (None, one.tenant)]
        for key, number in _count(lease, attempts, by).items():
            sums.setdefault(key, Usage(key)).attempts += number
        total.attempts += len(attempts)
    return tuple(sorted(sums.values(), key=lambda usage: (-usage.leased, usage.key))), total


@dataclass(frozen=True, slots=True)
class _Part:
    """What one attempt used of one GPU; without attempt, what nobody did."""

    lease: LeaseUse
    gpu: str
    attempt: AttemptUse | None
    seconds: float
    busy: float

    @property
    def is_wasted(self) -> bool:
        if self.attempt is None:
            return self.lease.holder is None
        return self.attempt.outcome not in (None, _SUCCEEDED)

    @property
    def tenant(self) -> str | None:
        """Whose it was; None: nobody's."""
        held = self.attempt or self.lease.holder
        return None if held is None else held.tenant


def _parts(lease: LeaseUse, since: datetime, until: datetime) -> Iterator[_Part]:
    held = _overlap(lease.granted_at, lease.ended_at, since, until)
    if not held or not lease.shares:
        return
    weights = [_overlap(attempt.begun_at, attempt.ended_at, since, until) for attempt in lease.attempts]
    if not any(weights):
        weights = [1.0] * len(lease.attempts)  # all shorter than the clock tells
    whole = sum(weights)
    for uuid, share in lease.shares:
        for attempt, weight in zip(lease.attempts, weights, strict=True):
            seconds = held * share * weight / whole
            busy = (attempt.busy_gpu_seconds or 0.0) * _inside(attempt, since, until) / len(lease.shares)
            yield _Part(lease, uuid, attempt, seconds, min(busy, seconds))
        if not lease.attempts:
            yield _Part(lease, uuid, None, held * share, 0.0)


def _overlap(begin: datetime, end: datetime | None, since: datetime, until: datetime) -> float:
    return max(0.0, (min(end or until, until) - max(begin, since)).total_seconds())


def _inside(attempt: AttemptUse, since: datetime, until: datetime) -> float:
    """Return the part of an attempt that lies in the window."""
    length = ((attempt.ended_at or until) - attempt.begun_at).total_seconds()
    return _overlap(attempt.begun_at, attempt.ended_at, since, until) / length if length > 0 else 0.0


def _key(part: _Part, by: UsageKey) -> str:
    if by is UsageKey.GPU:
        return part.gpu
    if by is UsageKey.NODE:
        return part.lease.node
    if part.attempt is not None:
        return _attempt_key(part.attempt, by)
    return NOBODY if part.lease.holder is None else _holder_key(part.lease.holder, by)


def _holder_key(holder: HolderUse, by: UsageKey) -> str:
    words = {UsageKey.TENANT: holder.tenant, UsageKey.USER: holder.user, UsageKey.JOB: f"lease:{holder.lease_id}"}
    return words.get(by, NOBODY)


def _attempt_key(attempt: AttemptUse, by: UsageKey) -> str:
    return {
        UsageKey.TENANT: attempt.tenant,
        UsageKey.USER: attempt.user,
        UsageKey.JOB: attempt.job_id,
        UsageKey.QUEUE: attempt.queue,
    }[by]


def _count(lease: LeaseUse, attempts: Iterable[AttemptUse], by: UsageKey) -> dict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for attempt in attempts:
        if by is UsageKey.GPU:
            for uuid, _share in lease.shares:
                counts[uuid] += 1
        else:
            counts[lease.node if by is UsageKey.NODE else _attempt_key(attempt, by)] += 1
    return counts
