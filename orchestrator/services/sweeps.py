"""The leader's sweeps: bounded passes of upkeep, each safe to repeat and to run twice at once.

Every write is fenced by the epoch in its own transaction, so a sweep of a leader that was paused changes nothing.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.ports import LossPolicy
from orchestrator.runtime import Runtime
from orchestrator.scheduling.plan import Policy, plan
from orchestrator.scheduling.snapshot import Snapshot
from orchestrator.services.lease_watch import LeaseWatch
from orchestrator.services.pools import PoolSweep
from orchestrator.services.publish import publish_admitted

logger = logging.getLogger(__name__)

#: Candidates of each queue that one pass looks at, and jobs that it admits at most.
ADMIT_BATCH: Final = 1000
ENTRIES_BATCH: Final = 500
RELEASE_BATCH: Final = 500
LEASES_BATCH: Final = 1000
PRUNE_BATCH: Final = 500
HEAL_BATCH: Final = 500
BLOCKED_BATCH: Final = 500
LETTERS_BATCH: Final = 200
UNBOUNDED: Final = 1 << 62

#: A submit may always leave so many unclaimed jobs in a stream, so that a cluster without a leader makes progress.
LEAST_WINDOW: Final = 2


@dataclass(frozen=True, slots=True)
class Sweep:
    """One kind of upkeep; ``run`` takes the epoch and returns how much it did."""

    name: str
    every_seconds: float
    batch: int  # a pass that did this much is followed by another one at once
    run: Callable[[int], int]


class Sweeps:
    """The sweeps of one leader, and what they remember during its term."""

    def __init__(self, runtime: Runtime, *, by_hand: bool = False) -> None:
        """Make them.

        Args:
            runtime: The outside world.
            by_hand: A person asks for one pass: whoever is past the end of a lease and its grace is taken for dead,
                without being watched for a while first.
        """
        self._runtime, self._by_hand = runtime, by_hand
        settings = runtime.settings
        self._watch = LeaseWatch(ttl_seconds=settings.lease_ttl, longest_gap_seconds=settings.lease_ttl / 3)
        self._windows: dict[str, int] = {}
        self._pools = PoolSweep(runtime)

    def table(self) -> tuple[Sweep, ...]:
        """Return every sweep, most urgent first."""
        interval = self._runtime.settings.sweep_interval
        return (
            Sweep("expire_leases", interval, LEASES_BATCH, self.expire_leases),
            Sweep("release_due", interval, RELEASE_BATCH, self.release_due),
            Sweep("admit", interval, ADMIT_BATCH, self.admit),
            Sweep("pools", interval, UNBOUNDED, self._pools.run),
            Sweep("heal_streams", 2 * interval, UNBOUNDED, self.heal_streams),
            Sweep("publish_due", interval, ENTRIES_BATCH, self.publish_due),
            Sweep("lose_nodes", 5 * interval, UNBOUNDED, self.lose_nodes),
            Sweep("heal_rows", 60 * interval, HEAL_BATCH, self.heal_rows),
            Sweep("end_forgotten", 30 * interval, BLOCKED_BATCH, self.end_forgotten),
            Sweep("copy_letters", 5 * interval, LETTERS_BATCH, self.copy_letters),
            Sweep("prune", 60 * interval, PRUNE_BATCH, self.prune),
        )

    def begin_term(self) -> None:
        """Forget what was seen before: somebody else may have led since."""
        self._watch.forget()
        self._windows.clear()

    def admit(self, epoch: int) -> int:
        """Place waiting jobs on all hosts, and set how much a submit may admit by itself."""
        runtime = self._runtime
        snapshot = runtime.admission.snapshot(limit=ADMIT_BATCH)
        self._set_windows(snapshot, epoch)
        if not snapshot.candidates:
            self._pools.note(snapshot, None)
            return 0
        made = plan(snapshot, runtime.clock.now(), Policy(most_admissions=ADMIT_BATCH))
        self._pools.note(snapshot, made)
        if not made.admissions:
            return 0
        placements = [(admission.seq, admission.node) for admission in made.admissions]
        entries = runtime.admission.admit(placements, epoch=epoch)
        publish_admitted(runtime.publisher, entries)
        return len(entries)

    def publish_due(self, epoch: int) -> int:
        """Look for the entries of unclaimed jobs, publish those that are missing, and return how many were due."""
        runtime = self._runtime
        due = runtime.admission.due_entries(limit=ENTRIES_BATCH, epoch=epoch)
        if not due:
            return 0
        known = [(item.entry, item.entry_id) for item in due if item.entry_id is not None]
        exist = runtime.publisher.exist(known)
        present = {entry.seq: entry_id for (entry, entry_id), there in zip(known, exist, strict=True) if there}
        missing = [item.entry for item in due if item.entry.seq not in present]
        # A job claimed since ``due_entries`` is published once more; the claim of that entry is refused.
        ids = runtime.publisher.publish(missing)
        present |= {entry.seq: entry_id for entry, entry_id in zip(missing, ids, strict=True)}
        runtime.admission.note_entries(sorted(present.items()), epoch=epoch)
        if missing:
            logger.info("published %d entries that were not in their streams", len(missing))
        return len(due)

    def heal_streams(self, epoch: int) -> int:
        """Make streams and groups that are missing; if any were, have every entry looked for now."""
        missing = self._runtime.publisher.missing_streams(sorted(self._runtime.cluster.queues()))
        if not missing:
            return 0
        count = self._runtime.admission.make_entries_due(epoch=epoch)
        logger.warning("streams of %s were missing and are made again; %d entries are due", ", ".join(missing), count)
        return len(missing)

    def release_due(self, epoch: int) -> int:
        """Make scheduled jobs ready whose time has come, and end waiting ones past their deadline."""
        return self._runtime.admission.release_due(limit=RELEASE_BATCH, epoch=epoch)

    def expire_leases(self, epoch: int) -> int:
        """End the leases of dead holders; their jobs are lost and run again.

        Observation begins half a TTL before the end: a holder that renews in time, every third of the TTL, is not seen.
        """
        runtime, settings = self._runtime, self._runtime.settings
        now = runtime.clock.monotonic()
        overdue = timedelta(seconds=-settings.lease_ttl / 2)
        silent = runtime.admission.expired_leases(limit=LEASES_BATCH, grace=overdue)
        dead = silent if self._by_hand else self._watch.observe(silent, now=now)
        if not dead:
            return 0
        ended = runtime.admission.expire_leases(dead, policy=self._loss_policy(), epoch=epoch)
        if ended:
            logger.warning("%d leases have expired; what ran under them runs again", ended)
        return ended

    def lose_nodes(self, epoch: int) -> int:
        """Mark silent hosts as lost; what was admitted for them goes elsewhere."""
        silent_for = timedelta(seconds=2 * self._runtime.settings.lease_ttl)
        names = self._runtime.admission.lose_nodes(silent_for=silent_for, epoch=epoch)
        if names:
            logger.warning("lost hosts: %s", ", ".join(names))
        return len(names)

    def heal_rows(self, epoch: int) -> int:
        """Bring rows back into line that disagree with each other."""
        healed = self._runtime.admission.heal(policy=self._loss_policy(), limit=HEAL_BATCH, epoch=epoch)
        if healed:
            logger.error("%d rows disagreed with the leases and were set right", healed)
        return healed

    def end_forgotten(self, epoch: int) -> int:
        """End blocked jobs that nothing will call any more: what they wait for ended otherwise than well."""
        ended = self._runtime.admission.end_forgotten(limit=BLOCKED_BATCH, epoch=epoch)
        if ended:
            logger.warning("%d blocked jobs were ended late: nobody had told them that what they need failed", ended)
        return ended

    def copy_letters(self, epoch: int) -> int:
        """Put copies of new dead letters into the streams for them; a pass that failed half-way copies some twice."""
        runtime = self._runtime
        letters = runtime.letters.uncopied(limit=LETTERS_BATCH)
        for letter in letters:
            runtime.publisher.dead_letter(letter.queue, letter.job_id, letter.reason)
        if letters:
            runtime.letters.note_copied([letter.seq for letter in letters], epoch=epoch)
        return len(letters)

    def prune(self, epoch: int) -> int:
        """Delete what ended long ago: jobs, leases, events of hosts; and, by a bound of its own, lines of the audit."""
        settings, admission = self._runtime.settings, self._runtime.admission
        older_than, audited = timedelta(seconds=settings.retention), timedelta(seconds=settings.audit_retention)
        ended = admission.prune(older_than=older_than, limit=PRUNE_BATCH, epoch=epoch)
        return ended + admission.prune_audit(older_than=audited, limit=PRUNE_BATCH, epoch=epoch)

    def _loss_policy(self) -> LossPolicy:
        settings = self._runtime.settings
        return LossPolicy(
            max_lost=settings.max_lost,
            delay=timedelta(seconds=settings.lost_delay),
            grace=timedelta(seconds=settings.expiry_grace),
        )

    def _set_windows(self, snapshot: Snapshot, epoch: int) -> None:
        windows = plan_windows(snapshot)
        changed = {name: window for name, window in windows.items() if self._windows.get(name) != window}
        if changed:
            self._runtime.admission.set_windows(changed, epoch=epoch)
            self._windows |= changed


def plan_windows(snapshot: Snapshot) -> Mapping[str, int]:
    """Return for each queue how many unclaimed jobs a submit may admit without a plan: about what starts at once."""
    windows = {queue.name: 0 for queue in snapshot.queues}
    for host in snapshot.hosts:
        if host.accepts:
            for queue in host.queues & windows.keys():
                windows[queue] += host.idle + host.look_ahead
    return {name: max(LEAST_WINDOW, window) for name, window in windows.items()}
