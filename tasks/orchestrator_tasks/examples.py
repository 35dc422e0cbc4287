"""Small tasks to try the orchestrator with."""

import time
from typing import Any

from celery import shared_task

from orchestrator import current
from orchestrator.worker.gpu_task import GPUTask


@shared_task(base=GPUTask, name="examples.noop", gpus=1)
def noop(value: Any = None) -> Any:
    """Return the argument; what it costs is the orchestrator's own cost."""
    return value


@shared_task(base=GPUTask, name="examples.where", gpus=1)
def where(seconds: float = 0.0) -> dict[str, Any]:
    """Hold the lease for a while and say which GPUs it gave."""
    context = current()
    steps = 10
    for step in range(steps):
        context.progress(step, steps)
        time.sleep(seconds / steps)
    context.progress(steps, steps)
    return {"gpus": list(context.gpus), "attempt": context.attempt, "fencing_token": context.fencing_token}


@shared_task(base=GPUTask, name="examples.add", gpus=0)
def add(left: float, right: float) -> float:
    """Return the sum, on a CPU; for chains, groups and chords."""
    return left + right


@shared_task(name="examples.plain_add")
def plain_add(left: float, right: float) -> float:
    """Return the sum as a plain Celery task, without a job."""
    return left + right
