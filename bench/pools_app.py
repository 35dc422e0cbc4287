"""The app of ``bench.pools``: a model that is nothing, and a task that says when it was entered."""

import os
import time
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import task_received

from orchestrator import current, model_cache
from orchestrator.install import install
from orchestrator.worker.gpu_task import GPUTask

app = install(Celery("bench_pools", include=["orchestrator_tasks.command"]))

#: Names the file into which the worker writes when it received which job.
RECEIPTS = "BENCH_POOLS_RECEIPTS"


@task_received.connect
def note_receipt(request: Any, **_: Any) -> None:
    """Write down when the worker received a task; called in the worker itself."""
    received = time.time()
    os.write(_receipts(), f"{request.id} {received}\n".encode())


@cache
def _receipts() -> int:
    return os.open(os.environ[RECEIPTS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


@app.task(base=GPUTask, name="bench.load", gpus=1)
def load(model: str) -> None:
    """Load nothing under a name."""
    with model_cache.use(model, object, size_mib=0):
        pass


@app.task(base=GPUTask, name="bench.enter", gpus=1)
def enter() -> tuple[float, float]:
    """Return the instants at which the task was entered and left."""
    entered = time.time()
    with model_cache.use(current().model or "none", object, size_mib=0):
        return entered, time.time()
