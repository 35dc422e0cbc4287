"""Tasks that use the example models: in a worker pool that has one loaded, else in a runner that loads it first."""

import os
from typing import Any

from celery import shared_task

from orchestrator import current, model_cache
from orchestrator.worker.gpu_task import GPUTask
from orchestrator_tasks import models


@shared_task(base=GPUTask, name="examples.classify", gpus=1, model="sentiment")
def classify(text: str) -> dict[str, Any]:
    """Say whether a text is meant well: the label, its probability, and which process said so."""
    name = current().model or "sentiment"
    example = models.find(name)
    was_loaded = name in model_cache.loaded()
    with example.in_use(name) as model:
        probability = model.probability(text)
    label = "positive" if probability >= 0.5 else "negative"
    answer = {"label": label, "probability": round(probability, 4), "model": name}
    return answer | {"was_loaded": was_loaded, "pid": os.getpid()}
