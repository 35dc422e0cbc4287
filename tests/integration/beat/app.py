"""A Celery app with a schedule, for beat processes to fire."""

from celery import Celery

from orchestrator.install import install
from orchestrator.worker.gpu_task import GPUTask

app = install(Celery("beat_test"))
app.conf.beat_schedule = {"tick": {"task": "beat_test.tick", "schedule": 1.0}}


@app.task(base=GPUTask, name="beat_test.tick", gpus=0)
def tick() -> None:
    """Do nothing; only the job counts."""
