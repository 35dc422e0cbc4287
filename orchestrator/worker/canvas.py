"""The jobs of a canvas that Celery is going to call: they are stored, blocked, with the message that begins it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.domain.canvas import Call, calls_behind, group_of, nearest_needs
from orchestrator.domain.request import LONGEST_TASK_ID, TaskRequest
from orchestrator.errors import InvalidRequest
from orchestrator.worker.gpu_task import GPUTask, job_options, request_fields

#: What of a message's embedding can lead to further calls.
_LEADS_ON: Final = ("chain", "chord", "callbacks")
#: Celery's tasks that call another one, as a function, many times.
_MAPS: Final = frozenset({"celery.map", "celery.starmap", "celery.chunks"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message stands in its canvas."""

    root_id: str | None  # None: it stands alone
    parent_id: str | None
    group_id: str | None


def leads_on(embed: Any) -> bool:
    """Other calls follow a message with this embedding."""
    return isinstance(embed, Mapping) and any(embed.get(name) for name in _LEADS_ON)


def refuse_map(tasks: Mapping[str, Any], name: str, kwargs: Any) -> None:
    """Refuse to run a GPU task as a plain function, without GPUs of its own.

    Raises:
        InvalidRequest: If the call is a map, starmap or chunks of a GPU task.
    """
    inner = kwargs.get("task") if name in _MAPS and isinstance(kwargs, Mapping) else None
    called = inner.get("task") if isinstance(inner, Mapping) else None
    if isinstance(tasks.get(called or ""), GPUTask):
        raise InvalidRequest(
            f"{name.removeprefix('celery.')} would run {called} as a function, without GPUs of its own: use a group"
        )


def place_of(headers: Mapping[str, Any], embed: Mapping[str, Any]) -> Place:
    """Return where a message stands.

    A group that is called from outside has no root in Celery: each of its members is its own. Here the group is theirs.
    """
    task_id, root_id, parent_id = (_usable(headers.get(name)) for name in ("id", "root_id", "parent_id"))
    group_id = _usable(headers.get("group")) or _usable(group_of(embed))
    if root_id in (None, task_id):
        root_id = group_id or (task_id if leads_on(embed) else None)
    return Place(root_id, parent_id, group_id)


def blocked_requests(
    tasks: Mapping[str, Any],
    headers: Mapping[str, Any],
    embed: Mapping[str, Any],
    *,
    plain: Callable[[Any], Any],
    queue_name: Callable[[Any, Any], str],
    running: str | None = None,
) -> list[TaskRequest]:
    """Return a request for every job that follows a message, with what it waits for.

    Args:
        tasks: Of the app, by name.
        headers: Of the message.
        embed: Of the message; what is no job in it may be of types that only its own serializer knows.
        plain: Returns a document in plain JSON types.
        queue_name: Returns the queue of a call, given what it asks for and its task.
        running: The job that publishes the message.
    """
    task_id = str(headers.get("id"))
    place = place_of(headers, embed)
    calls = calls_behind(task_id, embed, group_id=place.group_id)
    for call in calls:
        refuse_map(tasks, call.task, call.kwargs)
    jobs = {call.id for call in calls if isinstance(tasks.get(call.task), GPUTask)}
    if running in jobs:
        raise InvalidRequest("a job can be replaced by a task, but not by a canvas that ends with a job under its id")
    return [
        _blocked(tasks[call.task], call, place.root_id or task_id, plain=plain, queue_name=queue_name)
        for call in nearest_needs(calls, jobs)
    ]


def _blocked(
    task: Any, call: Call, root_id: str, *, plain: Callable[[Any], Any], queue_name: Callable[[Any, Any], str]
) -> TaskRequest:
    options = dict(call.options)
    wanted = job_options(task, options)
    args, kwargs = plain([list(call.args), dict(call.kwargs)])
    parent_id = _usable(call.needs[0]) if call.needs else None
    return TaskRequest(
        task=call.task,
        args=tuple(args),
        kwargs=kwargs,
        headers={"id": call.id, "root_id": root_id, "parent_id": parent_id, "group": call.group_id},
        id=call.id,
        queue=queue_name(options.get("queue"), task),
        priority=options.get("priority"),
        time_limit_seconds=options.get("time_limit") or task.time_limit,
        soft_time_limit_seconds=options.get("soft_time_limit") or task.soft_time_limit,
        submitted_by="canvas",
        root_id=root_id,
        parent_id=parent_id,
        group_id=_usable(call.group_id),
        needs=tuple(need for need in call.needs if _usable(need)),
        **request_fields(wanted),
    )


def _usable(value: Any) -> str | None:
    """Return an id that can be stored; people may choose their own."""
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_TASK_ID and value.isprintable() else None
