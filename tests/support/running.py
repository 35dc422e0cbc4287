"""A job that a worker runs, as far as the database knows: tests of what is told of jobs need no worker for that."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuRecord, NodeState
from orchestrator.domain.job import JobEvent, LeaseMode, Resources
from orchestrator.domain.lease import Claim, Finish, LeaseGrant, LedgerBatch, LogChunk
from orchestrator.ports import NodeRecord
from orchestrator.runtime import Runtime

TTL = timedelta(seconds=60)
GPU_MIB = 24 * 1024


def register(runtime: Runtime, node: str, gpus: int, *, tasks: tuple[str, ...] = ()) -> None:
    """Register a live host with so many GPUs, whose app knows these tasks."""
    cards = tuple(
        GpuRecord(Gpu(f"{node}-{index}", index, "Sim", GPU_MIB, "1"), node, GpuHealth.HEALTHY, 0, 0, None, 0)
        for index in range(gpus)
    )
    now = runtime.clock.now()
    runtime.cluster.register_node(
        NodeRecord(node, "boot", f"celery@{node}", 1, NodeState.UP, ("gpu",), 2, 0, now, True, cards, tasks)
    )


@contextmanager
def confirming(runtime: Runtime, refusal: str | None = None) -> Iterator[None]:
    """Have every host say that the GPUs of leases without a job are free, or why not, as their workers would."""
    ended = threading.Event()

    def confirm() -> None:
        while not ended.wait(0.01):
            for lease in runtime.leases.leases():
                runtime.leases.confirm(lease.id, refusal)

    thread = threading.Thread(target=confirm, name="confirming")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Running:
    """A job on a registered host, under a new lease of these GPUs; it prints and ends when the test says so."""

    def __init__(
        self,
        runtime: Runtime,
        job_id: str,
        node: str = "alpha",
        gpus: tuple[str, ...] = (),
        asked: Resources | None = None,
        *,
        ttl: timedelta = TTL,
    ) -> None:
        job = runtime.jobs.get(job_id)
        assert job is not None
        runtime.ledger.admit([(job.seq, node)])  # if it waits behind other tests' jobs
        grant = LeaseGrant(gpus, LeaseMode.EXCLUSIVE, None)
        batch = LedgerBatch(claims=(Claim(1, (job.seq,), asked or Resources(len(gpus)), grant=grant),))
        (outcome,) = runtime.ledger.commit(node, batch, ttl=ttl).claims
        assert outcome.lease_id is not None, outcome
        self._runtime, self._node = runtime, node
        self._seq, self._lease, self._printed = job.seq, outcome.lease_id, 0
        self.lease_id = outcome.lease_id

    def print(self, text: str) -> None:
        """Store output."""
        chunk = LogChunk(self._seq, 1, self._lease, self._printed, text)
        self._printed += 1
        self._runtime.ledger.commit(self._node, LedgerBatch(logs=(chunk,)), ttl=TTL)

    def end(self, event: JobEvent = JobEvent.SUCCEED, **values: Any) -> None:
        """End the attempt."""
        finish = Finish(self._seq, 1, self._lease, event, **values)
        self._runtime.ledger.commit(self._node, LedgerBatch(finishes=(finish,)), ttl=TTL)

    def release(self) -> None:
        """Free the GPUs."""
        self._runtime.ledger.commit(self._node, LedgerBatch(releases=(self._lease,)), ttl=TTL)
