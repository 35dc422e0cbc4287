"""Submitting jobs: checked, committed, then delivered."""

import logging
from collections.abc import Sequence

from orchestrator.domain.ids import uuid7
from orchestrator.domain.job import NewJob, Resources
from orchestrator.domain.request import CommandRequest, Limits, TaskRequest, new_job
from orchestrator.errors import StreamUnavailable, UnsatisfiableRequest
from orchestrator.ports import NodeRecord, Submitted
from orchestrator.runtime import Runtime

logger = logging.getLogger(__name__)


class SubmitService:
    """Turns requests into durable jobs."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        settings = runtime.settings
        self._limits = Limits(
            max_payload_bytes=settings.max_payload_bytes,
            max_priority=settings.max_priority,
            default_queue=settings.default_queue,
            default_grace_seconds=settings.default_grace,
            allowed_cwd=tuple(str(path) for path in settings.allowed_cwd),
        )

    def submit(self, requests: Sequence[CommandRequest | TaskRequest]) -> tuple[Submitted, ...]:
        """Store every request as a job, or none; when it returns, the jobs are durable.

        Raises:
            InvalidRequest: One of its kinds, if a request cannot be satisfied as it stands.
            StoreUnavailable: If the database does not take them.
        """
        now = self._runtime.clock.now()
        jobs = [new_job(request, id=uuid7(now), limits=self._limits) for request in requests]
        self._require_satisfiable(jobs)
        outcome = self._runtime.jobs.submit(jobs)
        try:
            self._runtime.publisher.publish(outcome.entries)
            if len(outcome.entries) < len(outcome.jobs):
                self._runtime.wake.publish("place")
        except StreamUnavailable as error:
            # The jobs are durable: the leader finds their entries missing and publishes them.
            logger.warning("%d jobs are stored and will be delivered when Redis answers: %s", len(outcome.jobs), error)
        return outcome.jobs

    def _require_satisfiable(self, jobs: Sequence[NewJob]) -> None:
        if all(job.resources.gpus == 0 for job in jobs):
            return
        nodes = self._runtime.cluster.nodes()
        for resources in {job.resources for job in jobs}:
            require_satisfiable(resources, nodes)


def require_satisfiable(resources: Resources, nodes: Sequence[NodeRecord]) -> None:
    """Refuse what no registered host could ever grant; with no host registered, anything may come.

    Raises:
        UnsatisfiableRequest: Naming the closest host.
    """
    if not nodes or resources.gpus == 0:
        return
    if resources.gpu_memory_mib is not None:
        largest = max(((card.gpu.memory_mib, node.name) for node in nodes for card in node.gpus), default=(0, ""))
        if largest[0] >= resources.gpu_memory_mib:
            return
        detail = f"the largest GPU has {largest[0]} MiB, on host {largest[1]}" if largest[1] else "no host has a GPU"
        raise UnsatisfiableRequest(f"{resources.gpu_memory_mib} MiB of one GPU can never be granted: {detail}")
    most, name = max((len(node.gpus), node.name) for node in nodes)
    if most < resources.gpus:
        raise UnsatisfiableRequest(
            f"{resources.gpus} GPUs of one host can never be granted: the largest host, {name}, has {most}"
        )
