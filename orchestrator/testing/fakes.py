"""The outside world in memory: what services are tested against without a server.

Each fake keeps the rules of its port as far as services rely on them, and can be told to fail as the real one does.
"""

import collections
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

from orchestrator.config import Settings
from orchestrator.dead_letter_ports import DeadLetter
from orchestrator.domain.cluster import GpuHolder
from orchestrator.domain.entry import JobEntry
from orchestrator.domain.pool import PoolStanding
from orchestrator.domain.usage import LeaseUse
from orchestrator.errors import (
    StoreUnavailable,
    StreamUnavailable,
)
from orchestrator.metric_ports import Backlog, EndedJob, Mark
from orchestrator.ports import DueEntry, LossPolicy, NodeRecord
from orchestrator.runtime import Runtime
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.stream_ports import WakeListener
from orchestrator.testing.clock import FakeClock
from orchestrator.testing.memory_access import MemoryAccess
from orchestrator.testing.memory_jobs import MemoryJobs
from orchestrator.testing.memory_leader import MemoryFirings, MemoryLeadership, MemorySweepLog

EMPTY: Snapshot = Snapshot((), (), (), ())


class MemoryStreams:
    """``StreamPublisher``: a dict of entries by id."""

    def __init__(self) -> None:
        self.entries: dict[str, JobEntry] = {}
        self.letters: list[tuple[str, str, str]] = []
        self.down = False
        self.flushed = False
        self._ids = itertools.count(1)

    def publish(self, entries: Sequence[JobEntry]) -> Sequence[str]:
        """Append the entries."""
        self._answer()
        ids = [f"{next(self._ids)}-0" for _ in entries]
        self.entries |= dict(zip(ids, entries, strict=True))
        return ids

    def exist(self, entries: Sequence[tuple[JobEntry, str]]) -> Sequence[bool]:
        """Say which are there."""
        self._answer()
        return [entry_id in self.entries for _entry, entry_id in entries]

    def dead_letter(self, queue: str, job_id: str, reason: str) -> None:
        """Keep the letter."""
        self._answer()
        self.letters.append((queue, job_id, reason))

    def backlogs(self, queues: Sequence[str], nodes: Sequence[str]) -> Mapping[str, Backlog]:
        """Count the entries of each queue; none is ever delivered."""
        self._answer()
        held = collections.Counter(entry.queue for entry in self.entries.values())
        return {queue: Backlog(held[queue], 0) for queue in queues}

    def missing_streams(self, queues: Sequence[str]) -> Sequence[str]:
        """Return all of them once after ``flush``."""
        self._answer()
        flushed, self.flushed = self.flushed, False
        return list(queues) if flushed else []

    def flush(self) -> None:
        """Lose everything, as a restarted Redis may."""
        self.entries.clear()
        self.flushed = True

    def _answer(self) -> None:
        if self.down:
            raise StreamUnavailable("Redis: down")


class MemoryWake:
    """``Wake``: keeps what was published, and calls listeners at once."""

    def __init__(self) -> None:
        self.published: list[tuple[str, dict[str, object]]] = []
        self.down = False
        self._callbacks: list[Callable[[str, Mapping[str, object]], None]] = []

    def publish(self, kind: str, **data: object) -> None:
        """Tell every listener."""
        if self.down:
            raise StreamUnavailable("Redis: down")
        self.published.append((kind, data))
        for callback in list(self._callbacks):
            callback(kind, data)

    def listen(self, callback: Callable[[str, Mapping[str, object]], None]) -> WakeListener:
        """Call back from now on."""
        self._callbacks.append(callback)
        return _Listening(self._callbacks, callback)


@dataclass(slots=True)
class _Listening:
    callbacks: list[Callable[[str, Mapping[str, object]], None]]
    callback: Callable[[str, Mapping[str, object]], None]

    def stop(self) -> None:
        if self.callback in self.callbacks:
            self.callbacks.remove(self.callback)


@dataclass(slots=True)
class MemoryCluster:
    """``ClusterStore``: hosts as a test says."""

    jobs: MemoryJobs
    hosts: list[NodeRecord] = field(default_factory=list)
    reads: int = 0

    def nodes(self) -> Sequence[NodeRecord]:
        """Return the hosts."""
        self.reads += 1
        return list(self.hosts)

    def gpu_holders(self) -> Mapping[str, Sequence[GpuHolder]]:
        """Return that nobody has any."""
        return {}

    def ensure_queues(self, names: Sequence[str]) -> None:
        """Create queues."""
        self.jobs.queue_names |= set(names)

    def queues(self) -> Mapping[str, bool]:
        """Return every queue, none paused."""
        return dict.fromkeys(sorted(self.jobs.queue_names), False)


class MemoryAdmission:
    """``AdmissionStore`` and the parts of ``LedgerStore`` that refill: a snapshot and due entries as a test says."""

    def __init__(self, leadership: MemoryLeadership) -> None:
        self._leadership = leadership
        self.picture = EMPTY
        self.due: list[DueEntry] = []
        self.noted: dict[int, str] = {}
        self.placements: list[tuple[int, str | None]] = []
        self.windows: dict[str, int] = {}
        self.leases: list[tuple[int, int]] = []
        self.ended_leases: list[tuple[int, int]] = []
        self.calls: list[str] = []
        self.down = False

    def snapshot(self, *, limit: int) -> Snapshot:
        """Return the picture."""
        self._call("snapshot")
        return self.picture

    def host_snapshot(self, node: str, *, limit: int) -> Snapshot:
        """Return the picture with one host."""
        hosts = tuple(host for host in self.picture.hosts if host.node == node)
        return replace(self.picture, hosts=hosts, candidates=self.picture.candidates[:limit])

    def admit(self, placements: Sequence[tuple[int, str | None]], *, epoch: int | None = None) -> tuple[JobEntry, ...]:
        """Admit candidates of the picture."""
        self._call("admit", epoch)
        waiting = {candidate.seq: candidate for candidate in self.picture.candidates}
        admitted = [(waiting[seq], node) for seq, node in placements if seq in waiting]
        gone = {candidate.seq for candidate, _node in admitted}
        rest = tuple(candidate for candidate in self.picture.candidates if candidate.seq not in gone)
        self.picture = replace(self.picture, candidates=rest)
        self.placements += [(candidate.seq, node) for candidate, node in admitted]
        return tuple(JobEntry(f"job-{item.seq}", item.seq, "task", item.queue, node, {}) for item, node in admitted)

    def set_windows(self, windows: Mapping[str, int], *, epoch: int) -> None:
        """Keep the windows."""
        self._call("set_windows", epoch)
        self.windows |= windows

    def due_entries(self, *, limit: int, epoch: int) -> Sequence[DueEntry]:
        """Return what is due."""
        self._call("due_entries", epoch)
        return self.due[:limit]

    def note_entries(self, published: Sequence[tuple[int, str]], *, epoch: int) -> None:
        """Nothing noted is due any more."""
        self._call("note_entries", epoch)
        self.noted |= dict(published)
        self.due = [item for item in self.due if item.entry.seq not in self.noted]

    def make_entries_due(self, *, epoch: int) -> int:
        """Count calls."""
        self._call("make_entries_due", epoch)
        return 0

    def release_due(self, *, limit: int, epoch: int) -> int:
        """Nothing is scheduled."""
        self._call("release_due", epoch)
        return 0

    def expired_leases(self, *, limit: int, grace: timedelta) -> Sequence[tuple[int, int]]:
        """Return the silent leases."""
        self._call("expired_leases")
        return list(self.leases)

    def expire_leases(self, candidates: Sequence[tuple[int, int]], *, policy: LossPolicy, epoch: int) -> int:
        """End those that are still the same."""
        self._call("expire_leases", epoch)
        ended = [lease for lease in candidates if lease in self.leases]
        self.leases = [lease for lease in self.leases if lease not in ended]
        self.ended_leases += ended
        return len(ended)

    def end_forgotten(self, *, limit: int, epoch: int) -> int:
        """Nobody is forgotten."""
        self._call("end_forgotten", epoch)
        return 0

    def lose_nodes(self, *, silent_for: timedelta, epoch: int) -> Sequence[str]:
        """No host is silent."""
        self._call("lose_nodes", epoch)
        return []

    def heal(self, *, policy: LossPolicy, limit: int, epoch: int) -> int:
        """Nothing disagrees."""
        self._call("heal", epoch)
        return 0

    def prune(self, *, older_than: timedelta, limit: int, epoch: int) -> int:
        """Nothing is old."""
        self._call("prune", epoch)
        return 0

    def prune_audit(self, *, older_than: timedelta, limit: int, epoch: int) -> int:
        """Nothing is old."""
        self._call("prune_audit", epoch)
        return 0

    def _call(self, name: str, epoch: int | None = None) -> None:
        self.calls.append(name)
        if self.down:
            raise StoreUnavailable("down")
        if epoch is not None:
            self._leadership.check(epoch)


class MemoryLetters:
    """What the leader's sweep needs of a ``DeadLetterStore``."""

    def __init__(self, leadership: MemoryLeadership) -> None:
        self._leadership = leadership
        self.waiting: list[DeadLetter] = []

    def uncopied(self, *, limit: int) -> Sequence[DeadLetter]:
        """Return what was not copied."""
        return self.waiting[:limit]

    def note_copied(self, seqs: Sequence[int], *, epoch: int) -> None:
        """Forget what was copied."""
        self._leadership.check(epoch)
        self.waiting = [letter for letter in self.waiting if letter.seq not in seqs]


class MemoryPools:
    """``PoolStore`` as long as there is no pool."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def standings(self, *, tenant: str | None = None) -> tuple[datetime, Sequence[PoolStanding]]:
        """Return the clock and nothing."""
        return self._clock.now(), ()


class MemoryUsage:
    """``UsageStore`` over a list."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.uses: list[LeaseUse] = []

    def now(self) -> datetime:
        """Return the clock."""
        return self._clock.now()

    def leases(self, *, since: datetime, until: datetime) -> Iterator[LeaseUse]:
        """Yield those of the list that overlap the window."""
        for use in self.uses:
            if use.granted_at < until and (use.ended_at is None or use.ended_at > since):
                yield use


class MemoryJobTimes:
    """``JobTimes`` over a list that tests fill, in order."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.jobs: list[tuple[Mark, EndedJob]] = []

    def mark(self) -> Mark:
        """Return the clock."""
        return Mark(self._clock.now(), 0)

    def ended(self, after: Mark, *, limit: int) -> tuple[Sequence[EndedJob], Mark]:
        """Return those of the list that ended after a place."""
        found = [(mark, job) for mark, job in self.jobs if mark > after][:limit]
        return [job for _, job in found], found[-1][0] if found else after


@dataclass(slots=True)
class MemoryWorld:
    """Every fake, and the runtime that is made of them."""

    clock: FakeClock
    jobs: MemoryJobs
    cluster: MemoryCluster
    leadership: MemoryLeadership
    admission: MemoryAdmission
    streams: MemoryStreams
    wake: MemoryWake
    sweep_log: MemorySweepLog
    runtime: Runtime
    firings: MemoryFirings


def memory_world(**settings: Any) -> MemoryWorld:
    """Return a runtime of fakes, with these settings."""
    clock = FakeClock()
    jobs = MemoryJobs(clock)
    cluster = MemoryCluster(jobs)
    leadership = MemoryLeadership(clock)
    admission = MemoryAdmission(leadership)
    streams, wake, sweep_log = MemoryStreams(), MemoryWake(), MemorySweepLog(clock)
    firings = MemoryFirings(leadership)
    runtime = Runtime(
        settings=Settings(**settings),
        clock=clock,
        jobs=cast("Any", jobs),
        ledger=cast("Any", admission),
        cluster=cast("Any", cluster),
        admission=cast("Any", admission),
        leadership=leadership,
        firings=firings,
        usage=MemoryUsage(clock),
        letters=cast("Any", MemoryLetters(leadership)),
        control=cast("Any", None),
        purges=cast("Any", None),
        queues=cast("Any", None),
        policy=cast("Any", None),
        events=cast("Any", None),
        sweep_log=sweep_log,
        access=MemoryAccess(clock),
        times=MemoryJobTimes(clock),
        tallies=cast("Any", None),
        leases=cast("Any", None),  # nothing over the fakes grants any
        pools=cast("Any", MemoryPools(clock)),
        publisher=streams,
        streams=streams,
        wake=wake,
        close=lambda: None,
    )
    return MemoryWorld(clock, jobs, cluster, leadership, admission, streams, wake, sweep_log, runtime, firings)
