"""What somebody asks for, and the one way from there to a job that may be stored.

Every fault of a request is found and reported together, in the caller's words: the field, what it must be.
"""

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeAlias

from orchestrator.domain.job import Document, JobKind, NewJob, Resources
from orchestrator.domain.redaction import show_arguments, show_command, show_keywords
from orchestrator.domain.request_checks import Checks
from orchestrator.domain.request_retries import MOST_ATTEMPTS, check_retry_on, most_attempts, retry_on_of
from orchestrator.domain.request_wants import AlternativeRequest, check_wants, gpus_of, wants_of
from orchestrator.domain.wants import Wants
from orchestrator.errors import InvalidJob, PayloadTooLarge

#: The Celery task that carries command jobs.
COMMAND_TASK: Final = "orchestrator.command"
DEFAULT_PRIORITY: Final = 5
LONGEST_LIMIT_SECONDS: Final = 366 * 86_400.0
LONGEST_GRACE_SECONDS: Final = 3600.0
#: Of a task that is no job; Celery lets people choose ids, and its own tables end here too.
LONGEST_TASK_ID: Final = 155

#: Headers of a Celery message that its entry repeats, so that Celery and Flower show the call as they know it.
_ENTRY_HEADERS: Final = ("root_id", "parent_id", "group", "group_index", "shadow", "origin", "retries", "ignore_result")
_LONGEST_HEADER: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What every request may say; None leaves the choice to the limits of the installation."""

    name: str | None = None  # shown to people
    queue: str | None = None
    gpus: int | None = None  # None: 1 when something is said of GPUs, else 0
    gpu_memory_mib: int | None = None  # a share of one GPU in place of whole ones
    gpu_type: str | None = None  # models that would do, as "H100|A100"
    min_memory_mib: int | None = None  # that each GPU has in all
    mig: str | None = None  # instances of this profile in place of whole cards
    constraints: Mapping[str, str] = field(default_factory=dict)  # labels that the host has
    cpus: int | None = None  # of the host, counted against what it offers
    memory_mib: int | None = None  # of the host, likewise
    alternatives: tuple[AlternativeRequest, ...] = ()  # other GPUs, in order of preference
    priority: int | None = None  # 9 starts first
    time_limit_seconds: float | None = None
    soft_time_limit_seconds: float | None = None
    grace_seconds: float | None = None
    max_attempts: int = 1
    retry_on: Mapping[str, int | None] | None = None  # by failure class: after so many failures; None: max_attempts
    run_at: datetime | None = None
    deadline: datetime | None = None
    key: str | None = None  # the same key from the same tenant names the same job
    tenant: str = "default"
    submitted_by: str = "anonymous"
    id: str | None = None  # a UUID; None: a new one
    traceparent: str | None = None  # the trace that it was submitted in (W3C Trace Context)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest(Options):
    """Run a program: an argument vector, no shell."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()  # names of secrets on the host that become variables; the values never travel
    cwd: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest(Options):
    """Call a Celery task."""

    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    embed: Mapping[str, Any] = field(default_factory=dict)  # callbacks, errbacks, chain, chord
    headers: Mapping[str, Any] = field(default_factory=dict)
    root_id: str | None = None  # of its canvas
    parent_id: str | None = None
    group_id: str | None = None
    needs: tuple[str, ...] = ()  # what it waits for in its canvas, by id
    model: str | None = None  # run it in a worker pool that has this model, if there is one
    pool: tuple[str, int] | None = None  # it loads the model of this pool's generation; only the leader asks for that


Request: TypeAlias = CommandRequest | TaskRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """What an installation allows, and its defaults."""

    max_payload_bytes: int = 1 << 20
    max_priority: int = 9
    default_queue: str = "gpu"
    default_grace_seconds: float = 10.0
    allowed_cwd: tuple[str, ...] = ()


def new_job(request: Request, *, id: str, limits: Limits) -> NewJob:
    """Return the job that a request asks for.

    Args:
        request: What was asked for; of any type and range, as it may come from outside.
        id: The job's id unless the request names one.
        limits: Of the installation.

    Raises:
        InvalidJob: Listing everything that is wrong with the request.
        PayloadTooLarge: If that is the only thing.
    """
    checks = Checks()
    _check_options(checks, request, limits)
    if isinstance(request, CommandRequest):
        _check_command(checks, request, limits)
    else:
        _check_task(checks, request)
    if checks.faults:
        raise InvalidJob(checks.faults)
    payload = _payload(request)
    _check_payload(payload, limits)
    return _build(request, request.id or id, payload, limits)


def _build(request: Request, id: str, payload: Document, limits: Limits) -> NewJob:
    command = isinstance(request, CommandRequest)
    return NewJob(
        id=id,
        name=request.name or _default_name(request),
        task=COMMAND_TASK if isinstance(request, CommandRequest) else request.task,
        kind=JobKind.COMMAND if command else JobKind.TASK,
        queue=request.queue or limits.default_queue,
        payload=payload,
        headers=_entry_headers(request),
        resources=_resources(request),
        tenant=request.tenant,
        submitted_by=request.submitted_by,
        priority=min(DEFAULT_PRIORITY, limits.max_priority) if request.priority is None else request.priority,
        digest=_digest(request),
        time_limit_seconds=request.time_limit_seconds,
        soft_time_limit_seconds=request.soft_time_limit_seconds,
        grace_seconds=limits.default_grace_seconds if request.grace_seconds is None else request.grace_seconds,
        max_attempts=most_attempts(request),
        retry_on=retry_on_of(request),
        run_at=request.run_at,
        deadline=request.deadline,
        idempotency_key=request.key,
        traceparent=request.traceparent,
        **({} if isinstance(request, CommandRequest) else _canvas_ids(request)),
    )


def _resources(request: Request) -> Resources:
    wants, gpus = wants_of(request), gpus_of(request)
    if isinstance(request, TaskRequest) and request.model is not None:
        wants = replace(wants or Wants(), model=request.model)
        gpus = 1 if request.gpus is None else gpus
    elif isinstance(request, TaskRequest) and request.pool is not None:
        name, generation = request.pool
        wants = replace(wants or Wants(), pool=name, generation=generation)
    return Resources(gpus, request.gpu_memory_mib, wants)


def _canvas_ids(request: TaskRequest) -> dict[str, Any]:
    return {
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "group_id": request.group_id,
        "needs": request.needs,
    }


def _check_options(checks: Checks, request: Request, limits: Limits) -> None:
    checks.optional_name("name", request.name, longest=128)
    checks.optional_word("queue", request.queue, longest=64)
    checks.word("tenant", request.tenant, longest=64)
    checks.name("submitted_by", request.submitted_by, longest=128)
    checks.optional_text("key", request.key, longest=128)
    checks.optional_job_id("id", request.id)
    check_wants(checks, request)
    checks.optional_whole("priority", request.priority, 0, limits.max_priority)
    checks.whole("max_attempts", request.max_attempts, 1, MOST_ATTEMPTS)
    check_retry_on(checks, request)
    hard = checks.optional_seconds("time_limit_seconds", request.time_limit_seconds, LONGEST_LIMIT_SECONDS)
    soft = checks.optional_seconds("soft_time_limit_seconds", request.soft_time_limit_seconds, LONGEST_LIMIT_SECONDS)
    checks.optional_seconds("grace_seconds", request.grace_seconds, LONGEST_GRACE_SECONDS, zero=True)
    if hard is not None and soft is not None and soft >= hard:
        checks.add("soft_time_limit_seconds", "must be less than time_limit_seconds")
    run_at = checks.optional_instant("run_at", request.run_at)
    deadline = checks.optional_instant("deadline", request.deadline)
    if run_at is not None and deadline is not None and deadline <= run_at:
        checks.add("deadline", "must be after run_at")


def _check_command(checks: Checks, request: CommandRequest, limits: Limits) -> None:
    checks.argv("argv", request.argv)
    checks.environment("environment", request.environment)
    checks.secrets("secrets", request.secrets, beside=request.environment)
    cwd = checks.optional_text("cwd", request.cwd, longest=4096)
    if cwd is not None and not cwd.startswith("/"):
        checks.add("cwd", "must be an absolute path")
    elif limits.allowed_cwd and not _is_below(cwd or "/", limits.allowed_cwd):
        checks.add("cwd", f"must be below one of {', '.join(limits.allowed_cwd)}")


def _check_task(checks: Checks, request: TaskRequest) -> None:
    checks.printable("task", request.task, longest=255)
    checks.array("args", request.args)
    for name in ("kwargs", "embed", "headers"):
        checks.document(name, getattr(request, name))
    for name in ("root_id", "parent_id", "group_id"):
        checks.optional_text(name, getattr(request, name), longest=LONGEST_TASK_ID)
    for task_id in request.needs:
        checks.text("needs", task_id, longest=LONGEST_TASK_ID)
    checks.optional_word("model", request.model, longest=128)


def _is_below(path: str, roots: tuple[str, ...]) -> bool:
    path = posixpath.normpath(path)
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in map(posixpath.normpath, roots))


def _payload(request: Request) -> Document:
    if isinstance(request, CommandRequest):
        named = {"secrets": sorted(request.secrets)} if request.secrets else {}
        return {"argv": list(request.argv), "env": dict(request.environment), "cwd": request.cwd} | named
    return {
        "args": list(request.args),
        "kwargs": dict(request.kwargs),
        "embed": dict(request.embed),
        "headers": dict(request.headers),
    }


def _check_payload(payload: Document, limits: Limits) -> None:
    """Refuse what cannot be stored as JSON text in UTF-8, or is too large in that form."""
    try:
        size = len(json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidJob([f"payload: cannot be written as JSON: {error}"]) from error
    if size > limits.max_payload_bytes:
        raise PayloadTooLarge(size, limits.max_payload_bytes)


def _default_name(request: Request) -> str:
    raw = request.argv[0].rstrip("/").rsplit("/", 1)[-1] if isinstance(request, CommandRequest) else request.task
    return re.sub(r"[^A-Za-z0-9._:@/ -]", "_", raw)[:128] or "command"


def _digest(request: Request) -> str:
    if isinstance(request, CommandRequest):
        return _hash([COMMAND_TASK, list(request.argv), request.cwd])
    return _hash([request.task])


def _hash(what: list[Any]) -> str:
    return hashlib.sha256(json.dumps(what, ensure_ascii=True).encode()).hexdigest()


def _entry_headers(request: Request) -> Document:
    """Return what the stream entry shows of the job: redacted arguments, canvas ids, time limits."""
    headers: dict[str, Any] = {}
    if isinstance(request, CommandRequest):
        headers = {"argsrepr": show_command(request.argv), "kwargsrepr": "{}", "shadow": request.name}
    else:
        said = {name: request.headers.get(name) for name in _ENTRY_HEADERS}
        headers = {name: value for name, value in said.items() if _is_small(value)}
        headers |= {"argsrepr": show_arguments(request.args), "kwargsrepr": show_keywords(request.kwargs)}
    if request.time_limit_seconds is not None or request.soft_time_limit_seconds is not None:
        headers["timelimit"] = [request.time_limit_seconds, request.soft_time_limit_seconds]
    return {name: value for name, value in headers.items() if value is not None}


def _is_small(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _LONGEST_HEADER
    return isinstance(value, bool | int)
