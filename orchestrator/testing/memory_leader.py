"""Leadership, and the record of its sweeps, in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.domain.sweep import SweepRecord, SweepTally
from orchestrator.errors import NotLeading, StoreUnavailable
from orchestrator.leader_ports import Term
from orchestrator.schedule_ports import Firing
from orchestrator.testing.clock import FakeClock


class MemoryLeadership:
    """``Leadership`` on a clock that stands for the database's."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._row: tuple[str, int, float] | None = None  # holder, epoch, expiry
        self._since = clock.now()
        self.ended_sessions: set[str] = set()  # of these holders
        self.down = False

    def campaign(self, holder: str, *, ttl: timedelta) -> Term:
        """Renew, or take over what has expired."""
        self._answer()
        now, expires_at = self._clock.monotonic(), self._clock.monotonic() + ttl.total_seconds()
        if self._row is None:
            self._row, self._since = (holder, 1, expires_at), self._clock.now()
        elif self._row[2] <= now or self._row[0] in self.ended_sessions - {holder}:
            self._row, self._since = (holder, self._row[1] + 1, expires_at), self._clock.now()
        elif self._row[0] == holder:
            self._row = (holder, self._row[1], expires_at)
        return Term(self._row[0], self._row[1], mine=self._row[0] == holder)

    def resign(self, holder: str, epoch: int) -> None:
        """Expire the row."""
        self._answer()
        if self._row is not None and self._row[:2] == (holder, epoch):
            self._row = (holder, epoch, self._clock.monotonic())

    def current(self) -> Term | None:
        """Return the live term."""
        self._answer()
        if self._row is None or self._row[2] <= self._clock.monotonic():
            return None
        return Term(self._row[0], self._row[1], mine=False, since=self._since, guarded=True)

    def is_deserted(self, holder: str) -> bool:
        """The current holder's session has ended."""
        return self._row is not None and self._row[0] in self.ended_sessions - {holder}

    def is_shaken(self, holder: str) -> bool:
        """This holder's session has ended."""
        return holder in self.ended_sessions

    def check(self, epoch: int) -> None:
        """Fence a write; the row counts, live or not."""
        if self._row is None or self._row[1] != epoch:
            raise NotLeading(epoch)

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("down")


class MemoryFirings:
    """``Firings`` in memory."""

    def __init__(self, leadership: MemoryLeadership) -> None:
        self._leadership = leadership
        self.known: dict[str, Firing] = {}
        self.down = False

    def load(self) -> Mapping[str, Firing]:
        """Return what is known."""
        self._answer()
        return dict(self.known)

    def begin(self, names: Mapping[str, datetime], *, epoch: int) -> None:
        """Note where entries begin."""
        self._answer()
        self._leadership.check(epoch)
        self.known = {name: Firing(at, None, is_sent=True) for name, at in names.items()} | self.known

    def fire(self, name: str, fired_at: datetime, task_id: str, *, epoch: int) -> None:
        """Note a firing."""
        self._answer()
        self._leadership.check(epoch)
        self.known[name] = Firing(fired_at, task_id, is_sent=False)

    def sent(self, name: str, task_id: str) -> None:
        """Note that it was sent."""
        self._answer()
        if self.known[name].task_id == task_id:
            self.known[name] = replace(self.known[name], is_sent=True)

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("down")


@dataclass(slots=True)
class MemorySweepLog:
    """``SweepLog`` over a dict of tallies."""

    clock: FakeClock
    tallies: dict[str, SweepTally] = field(default_factory=dict)
    epoch: int | None = None
    down: bool = False

    def note(self, tallies: Mapping[str, SweepTally], *, epoch: int | None) -> None:
        """Add passes."""
        if self.down:
            raise StoreUnavailable("down")
        self.epoch = epoch
        for name, tally in tallies.items():
            self.tallies.setdefault(name, SweepTally()).add(tally)

    def read(self) -> Sequence[SweepRecord]:
        """Return the records."""
        return [
            SweepRecord(
                name,
                t.passes,
                t.did,
                t.failures,
                t.seconds,
                self.clock.now(),
                t.last_did,
                t.last_seconds,
                t.last_error,
                self.epoch,
            )
            for name, t in sorted(self.tallies.items())
        ]
