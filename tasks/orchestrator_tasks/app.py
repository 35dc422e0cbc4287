"""The Celery app of the orchestrator's own tasks: ``celery -A orchestrator_tasks.app worker -Q gpu``."""

from celery import Celery

from orchestrator.install import install

app = install(
    Celery(
        "orchestrator_tasks",
        include=[f"orchestrator_tasks.{module}" for module in ("command", "examples", "inference", "preload")],
    )
)
