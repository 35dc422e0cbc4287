"""Where Celery publishes a task: for a GPU task, a job is submitted in place of a message.

Every way of calling a task ends in ``app.amqp.send_task_message``: ``delay``, ``send_task`` by name, canvases, retries.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery.app.amqp import AMQP
from kombu.utils.json import dumps

from orchestrator.domain.request import TaskRequest
from orchestrator.domain.request_wants import alternative
from orchestrator.domain.size import parse_mebibytes
from orchestrator.services.submit import SubmitService
from orchestrator.worker import resubmission
from orchestrator.worker.gpu_task import GPUTask, job_options

#: Headers that describe the message rather than the call; the entry has its own.
_NOT_STORED = frozenset({"argsrepr", "kwargsrepr"})


class JobAMQP(AMQP):
    """Celery's AMQP with jobs."""

    def _create_task_sender(self) -> Callable[..., Any]:
        send_plain: Callable[..., Any] = super()._create_task_sender()
        tasks = self.app.tasks
        self._submit_service: SubmitService | None = None

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            task = tasks.get(name)
            if not isinstance(task, GPUTask):
                return send_plain(producer, name, message, **options)
            return self._submit(task, name, message, options)

        return send_task_message

    def _submit(self, task: Any, name: str, message: Any, options: dict[str, Any]) -> None:
        request = task_request(task, name, message, options, default_queue=self.app.conf.task_default_queue)
        payload = {"task": name, "args": request.args, "kwargs": request.kwargs}
        payload |= {"embed": request.embed, "headers": request.headers}
        if resubmission.offer(request.id or "", payload, eta=message.headers.get("eta")):
            return
        if self._submit_service is None:
            self._submit_service = SubmitService(self.app.orchestrator_runtime())
        self._submit_service.submit([request])


def task_request(
    task: Any, name: str, message: Any, options: dict[str, Any], *, default_queue: str = "celery"
) -> TaskRequest:
    """Translate what Celery would publish into a request for a job."""
    headers = dict(message.headers) | dict(options.get("headers") or {})
    properties = {key: value for key, value in options.items() if key not in ("headers",)}
    wanted = job_options(task, properties)
    args, kwargs, embed = _plain(message.body)
    hard, soft = headers.get("timelimit") or (None, None)
    return TaskRequest(
        task=name,
        args=tuple(args),
        kwargs=kwargs,
        embed=embed,
        headers=_plain({key: value for key, value in headers.items() if key not in _NOT_STORED}),
        id=headers["id"],
        queue=_queue_name(options.get("queue"), task, default_queue),
        gpus=wanted["gpus"] if wanted["gpu_memory"] is None else 1,
        gpu_memory_mib=parse_mebibytes(wanted["gpu_memory"]),
        gpu_type=wanted["gpu_type"],
        min_memory_mib=parse_mebibytes(wanted["min_memory"]),
        mig=wanted["mig"],
        constraints=wanted["constraints"] or {},
        cpus=wanted["cpus"],
        memory_mib=parse_mebibytes(wanted["memory"]),
        alternatives=tuple(alternative(other) for other in wanted["alternatives"]),
        priority=options.get("priority"),
        time_limit_seconds=hard or task.time_limit,
        soft_time_limit_seconds=soft or task.soft_time_limit,
        grace_seconds=wanted["grace"],
        max_attempts=wanted["max_attempts"],
        run_at=_instant(headers.get("eta")),
        deadline=_instant(headers.get("expires")),
        key=wanted["key"],
        tenant=wanted["tenant"],
        submitted_by=str(headers.get("origin") or "celery"),
    )


def _plain(document: Any) -> Any:
    """Return the document in plain JSON types; kombu marks dates, UUIDs and the like."""
    return json.loads(dumps(document))


def _queue_name(queue: Any, task: Any, default_queue: str) -> str:
    name = getattr(queue, "name", queue)
    return task.queue if name in (None, default_queue) else str(name)


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
