"""A Celery app with a schedule of every stock kind, for beat processes to fire."""

from datetime import timedelta

from celery import Celery
from celery.schedules import crontab, solar

from orchestrator.install import install
from orchestrator.worker.gpu_task import GPUTask

app = install(Celery("beat_test"))
app.conf.timezone = "Europe/Berlin"
app.conf.beat_schedule = {
    "tick": {"task": "beat_test.tick", "schedule": 1.0},
    "hourly": {"task": "beat_test.rare", "args": ["hourly"], "schedule": timedelta(hours=1)},
    "new year": {
        "task": "beat_test.rare",
        "args": ["cron"],
        "schedule": crontab(0, 0, day_of_month=1, month_of_year=1),
    },
    "sunrise": {"task": "beat_test.rare", "args": ["solar"], "schedule": solar("sunrise", 52.52, 13.4)},
    "plain": {"task": "beat_test.plain", "schedule": timedelta(hours=1)},
}


@app.task(base=GPUTask, name="beat_test.tick", gpus=0)
def tick() -> None:
    """Do nothing; only the job counts."""


@app.task(base=GPUTask, name="beat_test.rare", gpus=0)
def rare(_which: str) -> None:
    """Do nothing; only the job counts."""


@app.task(name="beat_test.plain")
def plain() -> None:
    """Do nothing; only the message counts."""
