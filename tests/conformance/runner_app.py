"""The app of Celery's integration tasks as a user of this product would have it, for the pool's runners to import."""

import os
from typing import Any

from celery import Celery

from tests.conformance.runner_pool import adopt

app = adopt(Celery("conformance", include=["t.integration.tasks", "celery.contrib.testing.tasks"]), os.environ)
app.set_default()


def register_class_tasks(**_: Any) -> None:
    """Register what Celery's own fixture registers with the worker's app."""
    from t.integration.tasks import ClassBasedAutoRetryTask

    app.register_task(ClassBasedAutoRetryTask)


app.on_after_finalize.connect(register_class_tasks, weak=False)
