"""Many threads at once, each on its own connection, with leases that run out under them: the history stays whole.

What the state machine plays one transaction after another is played here as the database interleaves it.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest

from orchestrator.domain.job import JobEvent, JobState, Resources
from orchestrator.domain.lease import Claim, ClaimOutcome, Finish, LeaseGrant, LedgerBatch, LogChunk
from orchestrator.errors import NotLeading, StoreUnavailable
from orchestrator.ports import JobFilter, LossPolicy
from orchestrator.storage.history import SqlHistory
from orchestrator.testing.history import Expectations, verify
from tests.contract.conftest import MEMORY_MIB, Stores

ROUNDS = 150  # of each worker
NODES = ("a", "b")
GPUS = 2
POLICY = LossPolicy(max_lost=4, delay=timedelta(0), grace=timedelta(0))
ENDS = (JobEvent.SUCCEED, JobEvent.SUCCEED, JobEvent.FAIL, JobEvent.RETRY, JobEvent.GIVE_BACK, JobEvent.LOSE)
LEADER_TTL = timedelta(seconds=0.2)


def seqs_in(stores: Stores, *states: JobState) -> list[int]:
    return [job.seq for job in stores.jobs.list_jobs(JobFilter(states=frozenset(states), limit=50))]


class Worker:
    """Claims, works for a moment, and reports, gives back, or dies."""

    def __init__(self, stores: Stores, node: str, seed: int) -> None:
        self.stores, self.node, self.random = stores, node, random.Random(seed)

    def run(self, all_submitted: threading.Event) -> None:
        tries = 0
        while tries < ROUNDS:
            is_last = all_submitted.is_set()
            outcome = self.claim()
            if outcome is None:
                if is_last:
                    return  # nothing waits, and nothing more comes
                time.sleep(0.002)
                continue
            tries += 1
            if outcome.lease_id is not None:
                with suppress(StoreUnavailable):  # a loaded machine: it dies in the middle
                    self.work(outcome, outcome.lease_id)

    def claim(self) -> ClaimOutcome | None:
        waiting = self.stores.jobs.list_jobs(JobFilter(states=frozenset({JobState.QUEUED}), limit=20))
        if not waiting:
            return None
        job = self.random.choice(waiting)
        first = self.random.randrange(GPUS)
        gpus = tuple(f"{self.node}-{(first + number) % GPUS}" for number in range(job.resources.gpus))
        wanted = LeaseGrant(gpus, job.resources.mode, job.resources.gpu_memory_mib)
        ttl = timedelta(seconds=self.random.choice([0.01, 0.1, 2]))
        claim = Claim(1, (job.seq,), job.resources, grant=wanted)
        return self.stores.ledger.commit(self.node, LedgerBatch(claims=(claim,)), ttl=ttl).claims[0]

    def work(self, outcome: ClaimOutcome, lease: int) -> None:
        (job,) = outcome.granted
        time.sleep(self.random.choice([0, 0, 0.02]))
        self.stores.ledger.renew(self.node, [lease], ttl=timedelta(seconds=0.1))
        if self.random.random() < 0.2:
            return  # it dies
        end = Finish(job.seq, job.attempt, lease, self.random.choice(ENDS))
        batch = LedgerBatch(
            logs=(LogChunk(job.seq, job.attempt, lease, 0, "x"),),
            finishes=(end,),
            releases=(lease,) if self.random.random() < 0.8 else (),
        )
        self.stores.ledger.commit(self.node, batch, ttl=timedelta(seconds=0.1))
        if not batch.releases:
            self.stores.ledger.commit(self.node, LedgerBatch(finishes=(end,), releases=(lease,)), ttl=timedelta(1))


def produce(stores: Stores, seed: int, acknowledged: list[str]) -> None:
    """Submit jobs of all sizes, and cancel some wherever they are."""
    draw = random.Random(seed)
    for _ in range(ROUNDS):
        memory = draw.choice([None, None, MEMORY_MIB // 3])
        resources = Resources(1, memory) if memory else Resources(draw.randrange(3))
        acknowledged.append(stores.submit(resources=resources, max_attempts=99).id)
        if draw.random() < 0.2:
            stores.jobs.request_cancel(draw.choice(acknowledged), by="me", reason="x")


def lead(stores: Stores, name: str, over: threading.Event) -> None:
    """Sweep under whatever epoch was won last, as often and as stale as it comes."""
    epoch = 0
    while not over.is_set():
        term = stores.leadership.campaign(name, ttl=LEADER_TTL)
        epoch = term.epoch if term.mine else epoch
        seen = stores.admission.expired_leases(limit=50, grace=timedelta(0))
        time.sleep(0.01)
        for sweep in sweeps(stores, seen, epoch):
            with suppress(NotLeading, StoreUnavailable):
                sweep()
        stores.leadership.resign(name, epoch)


def sweeps(stores: Stores, seen: Sequence[tuple[int, int]], epoch: int) -> tuple[Callable[[], object], ...]:
    return (
        lambda: stores.admission.expire_leases(seen, policy=POLICY, epoch=epoch),
        lambda: stores.admission.release_due(limit=50, epoch=epoch),
        lambda: stores.admission.admit([(seq, None) for seq in seqs_in(stores, JobState.PENDING)], epoch=epoch),
    )


@pytest.mark.slow
def test_a_history_that_many_wrote_at_once_is_clean(stores: Stores) -> None:
    for node in NODES:
        stores.register(node, GPUS)
    stores.leadership.campaign("x", ttl=LEADER_TTL)
    acknowledged: list[str] = []
    over, all_submitted = threading.Event(), threading.Event()
    with ThreadPoolExecutor(8) as pool:
        leaders = [pool.submit(lead, stores, name, over) for name in ("x", "y")]
        workers = [pool.submit(Worker(stores, node, seed).run, all_submitted) for seed, node in enumerate(NODES * 2)]
        producers = [pool.submit(produce, stores, seed, acknowledged) for seed in (7, 8)]
        try:
            for one in producers:
                one.result(60)
            all_submitted.set()
            for one in workers:
                one.result(60)
        finally:
            all_submitted.set()
            over.set()
        for one in leaders:
            one.result(20)
    expected = Expectations(acknowledged=acknowledged)
    report = SqlHistory(stores.database).read(lambda view: verify(view, expected))

    assert report.is_clean, str(report)
    assert report.checked["jobs"] == 2 * ROUNDS
    assert report.checked["leases"] >= 10, "how many a busy machine grants in time is not the question, but some"
    assert report.checked["leader_events"] >= 2
