"""Whose a GPU's memory is: what runners use of their shares, and what no lease explains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

#: Users of a GPU outside of any lease that are named one by one.
MOST_NAMED: Final = 4


class GpuUser(NamedTuple):
    """A process on a GPU, as far as a host can tell."""

    pid: int
    used_mib: int
    user: str | None  # the account it runs under
    runner: str | None  # the runner that it belongs to; None: to none of this host's


@dataclass(frozen=True, slots=True)
class ForeignUse:
    """Memory of a GPU that no lease explains."""

    used_mib: int = 0
    by: tuple[str, ...] = ()  # who, in words, the largest first
    clean: bool = True  # so little of it is known to be somebody's that a lease on the whole GPU can be granted


NO_FOREIGN_USE: Final = ForeignUse()


@dataclass(frozen=True, slots=True)
class Shown:
    """What is known of one GPU when its foreign use is judged."""

    used_mib: int
    users: tuple[GpuUser, ...]
    ours: bool  # a runner of this host, or a lease, has it or a part of it
    lent_mib: int = 0  # to holders without a job, whose processes no host knows


class ForeignWatch:
    """Judges readings of one host, one after another.

    Processes that are seen count at once. Memory that no process explains counts only on a GPU that nobody of ours has,
    and only from the second reading: what has just ended gives its memory back a moment later.
    """

    def __init__(self, clean_mib: int) -> None:
        """Make it; ``clean_mib`` is what an unused GPU may have in use."""
        self._clean_mib = clean_mib
        self._leftover: set[str] = set()  # GPUs on which the reading before showed such memory

    def look(self, shown: Mapping[str, Shown]) -> dict[str, ForeignUse]:
        """Return the foreign use of every GPU in this reading."""
        leftover = {uuid for uuid, card in shown.items() if not card.ours and card.used_mib > self._clean_mib}
        lasting, self._leftover = leftover & self._leftover, leftover
        return {uuid: self._judge(card, leftover=uuid in lasting) for uuid, card in shown.items()}

    def _judge(self, card: Shown, *, leftover: bool) -> ForeignUse:
        strangers = sorted((user for user in card.users if user.runner is None), key=lambda user: -user.used_mib)
        seen = max(0, sum(user.used_mib for user in strangers) - card.lent_mib)
        by = tuple(_words(user) for user in strangers[:MOST_NAMED]) if seen else ()
        if len(strangers) > MOST_NAMED and by:
            by += (f"{len(strangers) - MOST_NAMED} more",)
        if leftover and card.used_mib > seen:
            by += (f"{card.used_mib - seen} MiB by no process that can be seen",)
            return ForeignUse(card.used_mib, by, seen <= self._clean_mib)
        return ForeignUse(seen, by, seen <= self._clean_mib)


def _words(user: GpuUser) -> str:
    account = f" ({user.user})" if user.user else ""
    return f"pid {user.pid}{account}: {user.used_mib} MiB"


class Verdict(StrEnum):
    """What a job hears that uses more than its share, or nothing of what it has."""

    WARN = "warn"
    END = "end"


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """When a share is overused."""

    tolerance_mib: int  # so much beyond its share is let pass
    patience_seconds: float = 0.5  # readings closer together count as one


@dataclass(frozen=True, slots=True)
class Holding:
    """A running job, and what its runner uses."""

    key: str
    used_mib: int
    share_mib: int | None  # None: it has its GPUs to itself, and is measured only


class Told(NamedTuple):
    """A verdict on a job, with what it rests on."""

    key: str
    verdict: Verdict
    used_mib: int
    share_mib: int


@dataclass(slots=True)
class MemoryWatch:
    """Remembers who was over its share: warned at the first reading, ended if the next one shows no less.

    Whoever comes back below is forgiven, and warned again the next time.
    """

    policy: MemoryPolicy
    _warned_at: dict[str, float] = field(default_factory=dict)  # monotonic
    _ended: set[str] = field(default_factory=set)

    def look(self, now: float, holdings: Iterable[Holding]) -> list[Told]:
        """Take in one reading; return who is to hear what now, each verdict once.

        Args:
            now: Monotonic instant of the reading, in seconds.
            holdings: The jobs that run.
        """
        current = {holding.key: holding for holding in holdings}
        self._ended &= current.keys()
        over = {key: holding for key, holding in current.items() if self._is_over(holding)}
        self._warned_at = {key: at for key, at in self._warned_at.items() if key in over}
        told = []
        for key, holding in over.items():
            share = holding.share_mib or 0
            if key not in self._warned_at:
                self._warned_at[key] = now
                told.append(Told(key, Verdict.WARN, holding.used_mib, share))
            elif key not in self._ended and now - self._warned_at[key] >= self.policy.patience_seconds:
                self._ended.add(key)
                told.append(Told(key, Verdict.END, holding.used_mib, share))
        return told

    def _is_over(self, holding: Holding) -> bool:
        return holding.share_mib is not None and holding.used_mib > holding.share_mib + self.policy.tolerance_mib
