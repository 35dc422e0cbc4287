"""``GPUTask``: a Celery task whose every call is a durable job under a lease.

    @app.task(base=GPUTask, gpus=2, time_limit=7200)
    def train(run): ...

``.delay()``, ``.apply_async()``, ``AsyncResult`` and canvases work as for any task.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from celery import Task

from orchestrator.domain.request_wants import alternative
from orchestrator.domain.size import parse_mebibytes


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
    #: Models that would do, as ``"H100|A100"``.
    gpu_type: ClassVar[str | None] = None
    #: Least memory of each GPU, as ``"40GiB"``.
    min_memory: ClassVar[int | str | None] = None
    #: MIG instances of this profile in place of whole cards, as ``"1g.10gb"``.
    mig: ClassVar[str | None] = None
    #: Labels that the host has, as ``{"zone": "a"}``.
    constraints: ClassVar[Mapping[str, str] | None] = None
    #: CPUs and memory of the host that each call is counted with.
    cpus: ClassVar[int | None] = None
    memory: ClassVar[int | str | None] = None
    #: Other GPUs that would do, in order of preference, as ``[{"gpus": 2, "gpu_type": "A100"}]``.
    alternatives: ClassVar[Sequence[Mapping[str, Any]]] = ()
    #: Run in a worker pool that has this model loaded, if there is one: the pool's name, or the model's.
    model: ClassVar[str | None] = None
    #: Attempts in all when it raises; Celery's own ``retry`` counts apart.
    max_attempts: ClassVar[int] = 1
    #: After which failures it is tried again, and how often, as ``{"oom": 2}``; None: after any.
    retry_on: ClassVar[Mapping[str, int | None] | None] = None
    #: Who the work is for.
    tenant: ClassVar[str] = "default"


_OPTIONAL: Final = (
    "gpu_memory", "gpu_type", "min_memory", "mig", "constraints", "cpus", "memory", "model", "grace", "key",
)  # fmt: skip


def job_options(task: Any, properties: dict[str, Any]) -> dict[str, Any]:
    """Take the job options of a call out of ``properties``; what it was not given is the task's own."""
    names: dict[str, Any] = dict.fromkeys(_OPTIONAL)
    names |= {"gpus": 0, "alternatives": (), "max_attempts": 1, "retry_on": None, "tenant": "default"}
    return {name: properties.pop(name, getattr(task, name, default)) for name, default in names.items()}


def request_fields(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return job options as the fields of a request that they are."""
    return {
        "gpus": wanted["gpus"] if wanted["gpu_memory"] is None else 1,
        "gpu_memory_mib": parse_mebibytes(wanted["gpu_memory"]),
        "gpu_type": wanted["gpu_type"],
        "min_memory_mib": parse_mebibytes(wanted["min_memory"]),
        "mig": wanted["mig"],
        "constraints": wanted["constraints"] or {},
        "cpus": wanted["cpus"],
        "memory_mib": parse_mebibytes(wanted["memory"]),
        "alternatives": tuple(alternative(other) for other in wanted["alternatives"]),
        "model": wanted["model"],
        "grace_seconds": wanted["grace"],
        "max_attempts": wanted["max_attempts"],
        "retry_on": wanted["retry_on"],
        "key": wanted["key"],
        "tenant": wanted["tenant"],
    }
