"""The task that carries command jobs; the runner pool runs the argv itself, so the body is never called."""

from celery import shared_task

from orchestrator.worker.gpu_task import GPUTask


@shared_task(base=GPUTask, name="orchestrator.command", gpus=0)
def command(*_args: object, **_kwargs: object) -> None:
    """Refuse to run outside a worker: a command needs a process of its own."""
    raise RuntimeError("a command job runs in the runner pool; submit it with orch submit or POST /jobs/submit")
