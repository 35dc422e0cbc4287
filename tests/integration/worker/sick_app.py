"""A user's app whose runners do not start on the GPUs that the file ``sick`` in the home names."""

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init

from orchestrator.install import install
from orchestrator.worker.gpu_task import GPUTask

app = install(Celery("sick_app"))


@app.task(base=GPUTask, name="t.where", gpus=1)
def where() -> str:
    return os.environ["CUDA_VISIBLE_DEVICES"]


@worker_process_init.connect  # type: ignore[untyped-decorator]
def fail(**_: Any) -> None:
    """Fail, as libraries do whose initialization finds a broken card."""
    sick = Path(os.environ["ORCHESTRATOR_HOME"], "sick")
    if os.environ["CUDA_VISIBLE_DEVICES"] in sick.read_text().split():
        raise SystemExit("the GPU does not answer")
