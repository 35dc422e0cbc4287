"""A user's app that cannot be used in a runner."""

from typing import Any

from celery import Celery
from celery.signals import worker_process_init

from orchestrator.install import install
from orchestrator.worker.gpu_task import GPUTask

app = install(Celery("broken_app"))


@app.task(base=GPUTask, name="t.never", gpus=1)
def never() -> None:
    raise AssertionError("it cannot come to this")


@worker_process_init.connect  # type: ignore[untyped-decorator]
def fail(**_: Any) -> None:
    """Fail, as code does that misses a file or a licence on this host."""
    raise SystemExit("no licence for this host")
