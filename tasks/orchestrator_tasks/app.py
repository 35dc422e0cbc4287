"""The Celery app of the orchestrator's own tasks: ``celery -A orchestrator_tasks.app worker -Q gpu``."""

from celery import Celery

from orchestrator.install import install

app = install(Celery("orchestrator_tasks", include=["orchestrator_tasks.command", "orchestrator_tasks.examples"]))
