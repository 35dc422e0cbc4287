"""The task that loads the example models into the runners of worker pools.

A loader of your own is a task like this one: it puts the model into ``orchestrator.model_cache`` under the name that it
is given, where the tasks that use it find it. A pool names it: ``orch pool start NAME --task your.loader``.
"""

from typing import Any

from celery import shared_task

from orchestrator import current, model_cache
from orchestrator.worker.gpu_task import GPUTask
from orchestrator_tasks import models


@shared_task(base=GPUTask, name="orchestrator.preload", gpus=1)
def preload(model: str, **options: Any) -> dict[str, Any]:
    """Load an example model, and say what is loaded now; the runner keeps it."""
    example = models.find(model)
    with example.in_use(model, **options):
        return {"loaded": dict(model_cache.loaded()), "gpus": list(current().gpus)}
