"""The ledger: the one thread of a worker that writes jobs and leases to the database.

It commits whatever has piled up while the last commit was on its way (group commit), so its cost per job falls as load
rises and nothing waits for a timer. Outcomes go back to the worker's event loop in one call each.
"""

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Final, Protocol

from orchestrator import failpoints
from orchestrator.clock import Clock
from orchestrator.domain.cluster import GpuOrder, GpuSample, GpuStanding, NodeState
from orchestrator.domain.lease import (
    Claim,
    Finish,
    JobNote,
    LedgerBatch,
    LedgerOutcome,
    LogChunk,
    Measured,
    PoolJoin,
    PoolResize,
    PoolUse,
    ProgressReport,
    Renewal,
)
from orchestrator.errors import StoreUnavailable
from orchestrator.ports import ClusterStore, LedgerStore, NodeRecord
from orchestrator.worker.pending import Heartbeat, Pending, Taken

logger = logging.getLogger(__name__)

#: Longest pause between tries while the database does not answer, in seconds.
LONGEST_PAUSE: Final = 2.0


class Listener(Protocol):
    """Who hears of outcomes; every method is called in the worker's event loop."""

    def on_committed(self, asked_at: float, batch: LedgerBatch, outcome: LedgerOutcome) -> None:
        """The batch took effect as the outcome says; ``asked_at`` is the monotonic instant before it was sent."""
        ...

    def on_renewed(self, asked_at: float, asked: Sequence[int], renewal: Renewal) -> None:
        """Leases were renewed; ``asked_at`` is the monotonic instant before the request was sent."""
        ...

    def on_registered(self) -> None:
        """The host's row is there, and nothing is leased to an earlier life of it."""
        ...

    def on_node_state(self, state: NodeState) -> None:
        """The heartbeat was answered."""
        ...

    def on_gpu_orders(self, orders: Mapping[str, GpuOrder]) -> None:
        """What operators want of the host's GPUs."""
        ...

    def on_degraded(self, degraded: bool) -> None:
        """The database stopped answering, or answers again."""
        ...

    def on_broken(self, error: Exception) -> None:
        """The ledger has ended for a fault of its own; nothing will be committed any more."""
        ...


class Ledger(threading.Thread):
    """Commits for one host; safe to call from any thread."""

    def __init__(
        self,
        *,
        store: LedgerStore,
        cluster: ClusterStore,
        node: str,
        ttl: timedelta,
        clock: Clock,
        listener: Listener,
        post: Callable[[Callable[[], None]], None],
        before_outcome: Callable[[LedgerBatch, LedgerOutcome], None],
    ) -> None:
        """Make the thread.

        Args:
            store: Where jobs and leases are.
            cluster: Where hosts are.
            node: This host.
            ttl: Life of a lease after its renewal.
            clock: For monotonic instants.
            listener: Who hears of outcomes.
            post: Runs a callable in the worker's event loop, from any thread.
            before_outcome: Called in this thread after a commit, before the listener hears of it: writes results.
        """
        super().__init__(name="ledger", daemon=True)
        self._store, self._cluster, self._node, self._ttl, self._clock = store, cluster, node, ttl, clock
        self._listener, self._post, self._before_outcome = listener, post, before_outcome
        self._changed = threading.Condition()
        self._pending = Pending()
        self._stopping = False
        self._degraded = False
        self._trouble_at: float | None = None  # when it last was; not told with a heartbeat yet

    @property
    def degraded(self) -> bool:
        """Whether the database did not answer the last time."""
        return self._degraded

    def add(
        self,
        *,
        logs: Sequence[LogChunk] = (),
        progress: Sequence[ProgressReport] = (),
        notes: Sequence[JobNote] = (),
        finishes: Sequence[Finish] = (),
        releases: Sequence[int] = (),
        withdrawals: Sequence[int] = (),
        joins: Sequence[PoolJoin] = (),
        resizes: Sequence[PoolResize] = (),
        claims: Sequence[Claim] = (),
        uses: Sequence[PoolUse] = (),
    ) -> None:
        """Have rows committed with the next batch."""
        with self._changed:
            pending = self._pending
            pending.logs += logs
            pending.progress += progress
            pending.notes += notes
            pending.finishes += finishes
            pending.releases += releases
            pending.withdrawals += withdrawals
            pending.joins += joins
            pending.resizes += resizes
            pending.claims += claims
            pending.uses |= {use.lease_id: use for use in uses}
            self._changed.notify()

    def renew(self, lease_ids: Sequence[int], measured: Sequence[Measured] = ()) -> None:
        """Have the leases renewed before anything else, and written what was measured under them."""
        with self._changed:
            self._pending.renewals = (list(lease_ids), measured)
            self._changed.notify()

    def register(self, record: NodeRecord) -> None:
        """Have the host registered before anything else."""
        with self._changed:
            self._pending.registration = record
            self._changed.notify()

    def run_errand(self, errand: Callable[[], object]) -> None:
        """Have something small written that belongs to no batch: it is called in this thread, after the next commit."""
        with self._changed:
            self._pending.errands.append(errand)
            self._changed.notify()

    def heartbeat(
        self,
        samples: Sequence[GpuSample],
        *,
        look_ahead: int,
        standings: Mapping[str, GpuStanding],
        settled: bool = False,
    ) -> None:
        """Have the host's row refreshed, and what is remembered of its GPUs.

        ``settled``: it knows that it drains, and works on nothing.
        """
        with self._changed:
            self._pending.heartbeat = Heartbeat(samples, look_ahead, standings, settled)
            self._changed.notify()

    def stop(self, timeout_seconds: float) -> bool:
        """Commit what is there, then end the thread; False when it did not end in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self.join(timeout_seconds)
        return not self.is_alive()

    def run(self) -> None:
        """Commit until stopped."""
        failures = 0
        while True:
            with self._changed:
                while not self._pending.anything() and not self._stopping:
                    self._changed.wait()
                if self._stopping and (failures or not self._pending.anything()):
                    return
                taken = self._take()
            try:
                self._work(taken)
            except StoreUnavailable as error:
                failures += 1
                self._trouble_at = self._clock.monotonic()
                self._report(degraded=True, error=error)
                with self._changed:
                    if not self._stopping:
                        self._changed.wait(min(LONGEST_PAUSE, 0.05 * 2**failures) * random.uniform(0.5, 1))  # noqa: S311
            except Exception as error:
                # A fault of ours, not of the database: better no worker than one that commits nothing.
                logger.critical("the ledger failed; the worker stops and what runs is ended", exc_info=True)
                self._post(partial(self._listener.on_broken, error))
                return
            else:
                failures = 0
                self._report(degraded=False)

    def _take(self) -> Taken:
        pending = self._pending
        taken = Taken(pending.registration, pending.renewals, pending.heartbeat, pending.take_batch(), pending.errands)
        pending.errands = []
        pending.registration = pending.renewals = pending.heartbeat = None
        return taken

    def _work(self, taken: Taken) -> None:
        try:
            if taken.registration is not None:
                self._cluster.register_node(taken.registration)
                self._beat(Heartbeat((), 0, {}, settled=False))  # a host that drains must know before it takes a job
                self._post(self._listener.on_registered)
            if taken.renewals is not None:
                self._renew(*taken.renewals)
            if taken.batch != _NOTHING:
                self._commit(taken.batch)
        except StoreUnavailable:
            self._put_back(taken)
            raise
        self._run_errands(taken.errands)
        if taken.heartbeat is not None:
            orders = self._cluster.note_gpu_standings(self._node, taken.heartbeat.standings)
            self._post(lambda: self._listener.on_gpu_orders(orders))
            self._beat(taken.heartbeat)

    def _run_errands(self, errands: list[Callable[[], object]]) -> None:
        try:
            while errands:
                errands[0]()
                del errands[0]
        except StoreUnavailable:
            with self._changed:
                self._pending.errands[:0] = errands
            raise

    def _beat(self, beat: Heartbeat) -> None:
        trouble = None if self._trouble_at is None else self._clock.monotonic() - self._trouble_at
        state = self._cluster.heartbeat(
            self._node,
            beat.samples,
            look_ahead=beat.look_ahead,
            settled=beat.settled,
            trouble_seconds=trouble,
        )
        self._trouble_at = None
        self._post(lambda: self._listener.on_node_state(state))

    def _renew(self, lease_ids: list[int], measured: Sequence[Measured]) -> None:
        asked_at = self._clock.monotonic()
        failpoints.reach("renew.before")
        renewal = self._store.renew(self._node, lease_ids, ttl=self._ttl, measured=measured)
        failpoints.reach("renew.committed")
        self._post(lambda: self._listener.on_renewed(asked_at, lease_ids, renewal))

    def _commit(self, batch: LedgerBatch) -> None:
        asked_at = self._clock.monotonic()
        if batch.finishes:
            failpoints.reach("finish.before")
        outcome = self._store.commit(self._node, batch, ttl=self._ttl)
        if batch.finishes:
            failpoints.reach("finish.committed")
        if batch.claims:
            failpoints.reach("claim.committed")
        self._before_outcome(batch, outcome)
        self._post(lambda: self._listener.on_committed(asked_at, batch, outcome))

    def _put_back(self, taken: Taken) -> None:
        batch = taken.batch
        with self._changed:
            pending = self._pending
            pending.registration = pending.registration or taken.registration
            pending.logs[:0] = batch.logs
            pending.progress[:0] = batch.progress
            pending.notes[:0] = batch.notes
            pending.finishes[:0] = batch.finishes
            pending.releases[:0] = batch.releases
            pending.withdrawals[:0] = batch.withdrawals
            pending.joins[:0] = batch.joins
            pending.resizes[:0] = batch.resizes
            pending.uses = {use.lease_id: use for use in batch.uses} | pending.uses
            pending.claims[:0] = [replace(claim, repeated=True) for claim in batch.claims]
            pending.errands[:0] = taken.errands

    def _report(self, *, degraded: bool, error: StoreUnavailable | None = None) -> None:
        if degraded == self._degraded:
            return
        self._degraded = degraded
        if degraded:
            logger.error("the database does not answer; running jobs go on while their leases last: %s", error)
        else:
            logger.warning("the database answers again")
        self._post(lambda: self._listener.on_degraded(degraded))


_NOTHING: Final = LedgerBatch()
