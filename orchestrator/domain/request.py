"""What somebody asks for, checked whole: every fault is reported together."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Final

from orchestrator.domain.ids import is_job_id
from orchestrator.domain.job import Document, JobKind, NewJob, Resources
from orchestrator.errors import InvalidRequest, PayloadTooLarge

#: The Celery task that carries command jobs.
COMMAND_TASK: Final = "orchestrator.command"
DEFAULT_PRIORITY: Final = 5
LONGEST_REPRESENTATION: Final = 100

_NAME: Final = re.compile(r"^[A-Za-z0-9._:@/ \-\[\]]{1,128}$")
_WORD: Final = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_VARIABLE: Final = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_RESERVED: Final = re.compile(r"^(CUDA_VISIBLE_DEVICES|NVIDIA_VISIBLE_DEVICES|LD_.*|ORCHESTRATOR_.*)$")
_SECRET: Final = re.compile(r"pass|secret|token|key|credential", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What can be asked of any job; None takes the default."""

    id: str | None = None
    name: str | None = None
    queue: str | None = None
    gpus: int = 0
    gpu_memory_mib: int | None = None
    priority: int | None = None
    time_limit_seconds: float | None = None
    soft_time_limit_seconds: float | None = None
    grace_seconds: float | None = None
    max_attempts: int = 1
    run_at: datetime | None = None
    deadline: datetime | None = None
    key: str | None = None
    tenant: str = "default"
    submitted_by: str = "anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest(JobOptions):
    """A program to run; ``argv`` goes to no shell."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest(JobOptions):
    """A call of a Celery task."""

    task: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    embed: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an installation accepts."""

    max_payload_bytes: int = 1 << 20
    max_priority: int = 9
    default_queue: str = "gpu"
    default_grace_seconds: float = 10
    allowed_cwd: tuple[str, ...] = ()


def new_job(request: CommandRequest | TaskRequest, *, id: str, limits: Limits) -> NewJob:  # noqa: A002
    """Return the job that a request asks for.

    Args:
        request: What somebody asks for.
        id: A fresh UUIDv7, used unless the request brings its own.
        limits: What this installation accepts.

    Raises:
        InvalidRequest: Naming every fault.
        PayloadTooLarge: If what it runs is larger than the limit.
    """
    is_command = isinstance(request, CommandRequest)
    faults = [*_option_faults(request, limits)]
    faults += _command_faults(request, limits) if isinstance(request, CommandRequest) else _task_faults(request)
    if faults:
        raise InvalidRequest("; ".join(faults))
    payload = _payload(request)
    size = len(json.dumps(payload, ensure_ascii=False).encode())
    if size > limits.max_payload_bytes:
        raise PayloadTooLarge(size, limits.max_payload_bytes)
    task = COMMAND_TASK if isinstance(request, CommandRequest) else request.task
    return NewJob(
        id=request.id or id,
        name=request.name or (PurePosixPath(request.argv[0]).name[:128] if isinstance(request, CommandRequest) else task)[:128],
        task=task,
        kind=JobKind.COMMAND if is_command else JobKind.TASK,
        queue=request.queue or limits.default_queue,
        payload=payload,
        headers=_shown(request),
        resources=Resources(request.gpus, request.gpu_memory_mib),
        tenant=request.tenant,
        submitted_by=request.submitted_by[:128],
        priority=DEFAULT_PRIORITY if request.priority is None else request.priority,
        digest=_digest(task, request),
        time_limit_seconds=request.time_limit_seconds,
        soft_time_limit_seconds=request.soft_time_limit_seconds,
        grace_seconds=limits.default_grace_seconds if request.grace_seconds is None else request.grace_seconds,
        max_attempts=request.max_attempts,
        run_at=request.run_at,
        deadline=request.deadline,
        idempotency_key=request.key,
    )


def _option_faults(options: JobOptions, limits: Limits) -> Iterable[str]:
    if options.id is not None and not is_job_id(options.id):
        yield f"id: {options.id!r} is not a UUID"
    if options.name is not None and not _NAME.match(options.name):
        yield "name: 1 to 128 letters, digits, spaces and ._:@/-[]"
    for label, word in (("queue", options.queue), ("tenant", options.tenant)):
        if word is not None and not _WORD.match(word):
            yield f"{label}: 1 to 64 letters, digits and ._-"
    if options.gpus < 0:
        yield "gpus: must not be negative"
    if options.gpu_memory_mib is not None and options.gpu_memory_mib < 1:
        yield "gpu_memory: must be at least 1 MiB"
    if options.gpu_memory_mib is not None and options.gpus != 1:
        yield "gpu_memory: a share of memory is of one GPU, so gpus must be 1"
    if options.priority is not None and not 0 <= options.priority <= limits.max_priority:
        yield f"priority: 0 to {limits.max_priority}"
    for label, seconds in (
        ("time_limit", options.time_limit_seconds),
        ("soft_time_limit", options.soft_time_limit_seconds),
    ):
        if seconds is not None and not 0 < seconds < float("inf"):
            yield f"{label}: must be more than 0 seconds"
    if options.grace_seconds is not None and not 0 <= options.grace_seconds <= 3600:  # noqa: PLR2004 - an hour
        yield "grace: 0 to 3600 seconds"
    if not 1 <= options.max_attempts <= 100:  # noqa: PLR2004
        yield "max_attempts: 1 to 100"
    for label, instant in (("run_at", options.run_at), ("deadline", options.deadline)):
        if instant is not None and instant.tzinfo is None:
            yield f"{label}: needs a time zone"
    if options.key is not None and not 1 <= len(options.key) <= 128:  # noqa: PLR2004
        yield "key: 1 to 128 characters"


def _command_faults(request: CommandRequest, limits: Limits) -> Iterable[str]:
    if not request.argv or not request.argv[0]:
        yield "argv: must name a program"
    if any("\0" in argument for argument in (*request.argv, request.cwd, *request.environment.values())):
        yield "argv, env, cwd: must not contain NUL"
    for name in request.environment:
        if not _VARIABLE.match(name):
            yield f"env: {name!r} is not a variable's name"
        elif _RESERVED.match(name):
            yield f"env: {name} is set by the orchestrator, not by a request"
    cwd = PurePosixPath(request.cwd)
    if not cwd.is_absolute() or ".." in cwd.parts:
        yield f"cwd: {request.cwd!r} is not an absolute path"
    elif limits.allowed_cwd and not any(cwd.is_relative_to(root) for root in limits.allowed_cwd):
        yield f"cwd: must be below {' or '.join(limits.allowed_cwd)}"


def _task_faults(request: TaskRequest) -> Iterable[str]:
    if not request.task or len(request.task) > 255:  # noqa: PLR2004 - the column
        yield "task: must be a Celery task's name"
    try:
        json.dumps([list(request.args), dict(request.kwargs), dict(request.embed)])
    except (TypeError, ValueError) as error:
        yield f"args, kwargs: must be JSON: {error}"


def _payload(request: CommandRequest | TaskRequest) -> Document:
    if isinstance(request, CommandRequest):
        return {"argv": list(request.argv), "env": dict(request.environment), "cwd": request.cwd}
    return {
        "args": list(request.args),
        "kwargs": dict(request.kwargs),
        "embed": dict(request.embed),
        "headers": dict(request.headers),
    }


def _shown(request: CommandRequest | TaskRequest) -> Document:
    """Return what the stream entry, Flower and people may see: no value that looks like a secret, nothing long."""
    if isinstance(request, CommandRequest):
        program = PurePosixPath(request.argv[0]).name[:LONGEST_REPRESENTATION]
        return {"argsrepr": f"({program!r}, +{len(request.argv) - 1})", "kwargsrepr": "{}"}
    shown: dict[str, Any] = {
        "argsrepr": "(" + ", ".join(_brief(value) for value in request.args[:10]) + ")",
        "kwargsrepr": "{"
        + ", ".join(
            f"{name!r}: {'***' if _SECRET.search(name) else _brief(value)}" for name, value in list(request.kwargs.items())[:10]
        )
        + "}",
    }
    for name in ("root_id", "parent_id", "group", "retries", "timelimit", "shadow", "ignore_result"):
        if request.headers.get(name) is not None:
            shown[name] = request.headers[name]
    return shown


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, (int, float, bool, str, type(None))) else f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST_REPRESENTATION else text[: LONGEST_REPRESENTATION - 1] + "…"


def _digest(task: str, request: CommandRequest | TaskRequest) -> str:
    what = [task, list(request.argv), request.cwd] if isinstance(request, CommandRequest) else [task]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


