"""Where Celery publishes a task: for a GPU task, a job is submitted in place of a message.

Every way of calling a task ends in ``app.amqp.send_task_message``: ``delay``, ``send_task`` by name, canvases, retries.
Jobs that follow in the canvas are submitted with the message that begins it, blocked until the canvas calls them.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from celery.app.amqp import AMQP
from kombu.utils.json import dumps

from orchestrator.domain.request import TaskRequest
from orchestrator.observe import traces
from orchestrator.services.submit import SubmitService
from orchestrator.worker import resubmission
from orchestrator.worker.canvas import blocked_requests, leads_on, place_of, refuse_map
from orchestrator.worker.gpu_task import GPUTask, job_options, request_fields

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
            if isinstance(task, GPUTask):
                return self._submit(task, name, message, options)
            if message.headers.get("id") == resubmission.running() is not None:
                resubmission.note_replaced()
            _, kwargs, embed = message.body if isinstance(message.body, tuple) else (None, None, None)
            refuse_map(tasks, name, kwargs)
            if not leads_on(embed) or not self._submit_blocked(message.headers, embed):
                return send_plain(producer, name, message, **options)
            try:
                return send_plain(producer, name, message, **options)
            except Exception:
                self.app.orchestrator_runtime().jobs.end_dependents([message.headers["id"]], "could not be published")
                raise

        return send_task_message

    def _submit(self, task: Any, name: str, message: Any, options: dict[str, Any]) -> None:
        request = task_request(task, name, message, options, default_queue=self.app.conf.task_default_queue)
        payload = {"task": name, "args": request.args, "kwargs": request.kwargs}
        payload |= {"embed": request.embed, "headers": request.headers}
        if resubmission.offer(request.id or "", payload, eta=message.headers.get("eta")):
            return
        if not leads_on(request.embed):
            self._submits().submit([request])
            return
        if request.parent_id is not None:
            # Most often a canvas goes on, and what follows is stored: a long chain is not gone through at each step.
            (submitted,) = self._submits().submit([request])
            if submitted.created:
                self._submit_blocked(message.headers, request.embed)
            return
        self._submits().submit([request, *self._blocked(message.headers, request.embed)])

    def _submit_blocked(self, headers: Mapping[str, Any], embed: Mapping[str, Any]) -> bool:
        """Store the jobs that follow a plain task; returns whether there are any."""
        blocked = self._blocked(headers, embed)
        if blocked:
            self._submits().submit(blocked)
        return bool(blocked)

    def _blocked(self, headers: Mapping[str, Any], embed: Mapping[str, Any]) -> list[TaskRequest]:
        default = self.app.conf.task_default_queue

        def queue_name(queue: Any, task: Any) -> str:
            return _queue_name(queue, task, default)

        running = resubmission.running()
        return blocked_requests(self.app.tasks, headers, embed, plain=_plain, queue_name=queue_name, running=running)

    def _submits(self) -> SubmitService:
        if self._submit_service is None:
            self._submit_service = SubmitService(self.app.orchestrator_runtime())
        return self._submit_service


def task_request(
    task: Any, name: str, message: Any, options: dict[str, Any], *, default_queue: str = "celery"
) -> TaskRequest:
    """Translate what Celery would publish into a request for a job."""
    headers = dict(message.headers) | dict(options.get("headers") or {})
    properties = {key: value for key, value in options.items() if key not in ("headers",)}
    wanted = job_options(task, properties)
    args, kwargs, embed = _plain(message.body)
    hard, soft = headers.get("timelimit") or (None, None)
    place = place_of(headers, embed)
    return TaskRequest(
        task=name,
        args=tuple(args),
        kwargs=kwargs,
        embed=embed,
        headers=_plain({key: value for key, value in headers.items() if key not in _NOT_STORED}),
        id=headers["id"],
        queue=_queue_name(options.get("queue"), task, default_queue),
        priority=options.get("priority"),
        time_limit_seconds=hard or task.time_limit,
        soft_time_limit_seconds=soft or task.soft_time_limit,
        run_at=_instant(headers.get("eta")),
        deadline=_instant(headers.get("expires")),
        traceparent=traces.sanitized(headers.get(traces.HEADER)) or traces.current(),
        submitted_by=str(headers.get("origin") or "celery"),
        root_id=place.root_id,
        parent_id=place.parent_id,
        group_id=place.group_id,
        **request_fields(wanted),
    )


def _plain(document: Any) -> Any:
    """Return the document in plain JSON types; kombu marks dates, UUIDs and the like."""
    return json.loads(dumps(document))


def _queue_name(queue: Any, task: Any, default_queue: str) -> str:
    name = getattr(queue, "name", queue)
    return task.queue if name in (None, default_queue) else str(name)


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
