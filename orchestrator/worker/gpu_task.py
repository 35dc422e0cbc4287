"""``GPUTask``: a Celery task whose every call is a durable job under a lease.

    @app.task(base=GPUTask, gpus=2, time_limit=7200)
    def train(run): ...

``.delay()``, ``.apply_async()``, ``AsyncResult`` and canvases work as for any task.
"""

from typing import Any, ClassVar

from celery import Task


class GPUTask(Task):
    """A task that runs as a job; the class attributes are its defaults, ``apply_async`` options beat them."""

    abstract = True
    queue: ClassVar[str] = "gpu"
    acks_late = True  # its entry is acknowledged when its finish is committed
    acks_on_failure = True
    acks_on_timeout = True
    reject_on_worker_lost = False  # the lease decides what becomes of a lost job, not the message
    track_started = False

    #: GPUs of one host that each call needs, all or nothing.
    gpus: ClassVar[int] = 1
    #: For a share of one GPU instead of whole ones: MiB as a number, or a size like ``"12GiB"``.
    gpu_memory: ClassVar[int | str | None] = None
    #: Attempts in all when it raises; Celery's own ``retry`` counts apart.
    max_attempts: ClassVar[int] = 1
    #: Who the work is for.
    tenant: ClassVar[str] = "default"


def job_options(task: Any, properties: dict[str, Any]) -> dict[str, Any]:
    """Take the job options of a call out of ``properties``; what it was not given is the task's own."""
    names = {"gpus": 0, "gpu_memory": None, "max_attempts": 1, "tenant": "default", "grace": None, "key": None}
    return {name: properties.pop(name, getattr(task, name, default)) for name, default in names.items()}
