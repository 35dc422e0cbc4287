"""The app of a pytest-celery worker with this product's pool; pytest-celery replaces the three lines below in it."""

import os
from typing import Any

from celery import Celery

from orchestrator.install import install

imports = None

app = Celery("celery_test_app")
config: Any
config = None

install(app)
app.conf.update(task_default_queue="celery", **(config or {}))
app.set_default()

# What the host is called in the database and in the streams; each worker has its own.
os.environ.setdefault("ORCHESTRATOR_NODE", f"worker-{os.path.basename(os.getcwd())}")
