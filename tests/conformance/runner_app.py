"""The app of Celery's integration tasks as a user of this product would have it, for the worker's process."""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_init

from orchestrator.install import install

app = install(Celery("conformance", include=["t.integration.tasks"]))
app.conf.update(
    broker_url=os.environ["CONFORMANCE_BROKER"],
    result_backend=os.environ["TEST_BACKEND"],
    result_extended=True,
    task_acks_late=False,
    task_default_queue="celery",
    worker_send_task_events=True,
)
app.set_default()


def register_class_tasks(**_: Any) -> None:
    """Register what Celery's own fixture registers with the worker's app."""
    from t.integration.tasks import ClassBasedAutoRetryTask

    if ClassBasedAutoRetryTask.name not in app.tasks:
        app.register_task(ClassBasedAutoRetryTask)


worker_init.connect(register_class_tasks)
app.on_after_finalize.connect(register_class_tasks, weak=False)
