"""What the API takes and gives, as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Self

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.api import bounds
from orchestrator.api.instants import JobInstant
from orchestrator.domain.access import DEFAULT_TENANT, Principal
from orchestrator.domain.canvas import Need
from orchestrator.domain.cluster import GpuHolder, GpuRecord
from orchestrator.domain.job import TERMINAL_STATES, Job
from orchestrator.domain.request import LONGEST_TASK_ID, CommandRequest, Request, TaskRequest
from orchestrator.domain.request_wants import alternative
from orchestrator.domain.size import parse_mebibytes
from orchestrator.domain.wants import wants_document
from orchestrator.ports import Attempt, HistoryEvent, NodeRecord, Submitted

#: The highest cursor that the database can hold.
MOST_SEQ: Final = (1 << 63) - 1

Text = Annotated[str, Field(max_length=4096)]
#: Memory, as ``12GiB`` or a number of MiB.
Size = Annotated[str, Field(max_length=32)] | int
#: A name or value of a host's label; ``domain.request_wants`` says what it may hold.
Label = Annotated[str, Field(max_length=63)]
Labels = dict[Label, Label]
JobId = Annotated[str, Path(max_length=LONGEST_TASK_ID, description="The job's id.")]

#: Fields that mean something only with the other kind of job.
_OF_COMMANDS: Final = ("env", "secrets", "cwd")
_OF_TASKS: Final = ("args", "kwargs", "model")
#: What ``SubmitBody`` asks of its fields together, for its description.
_ONE_KIND: Final[dict[str, Any]] = {
    "oneOf": [
        {
            "title": "A command",
            "required": ["argv"],
            "properties": {"argv": {"type": "array"}, "task": {"type": "null"}} | dict.fromkeys(_OF_TASKS, False),
        },
        {
            "title": "A Celery task",
            "required": ["task"],
            "properties": {"task": {"type": "string"} | bounds.TASK, "argv": {"type": "null"}}
            | dict.fromkeys(_OF_COMMANDS, False),
        },
    ]
}


class AlternativeBody(BaseModel):
    """Other GPUs that would do."""

    model_config = ConfigDict(extra="forbid", strict=True)

    gpus: int | None = Field(default=None, json_schema_extra=bounds.GPUS)
    gpu_memory: Size | None = None
    gpu_type: Text | None = Field(default=None, json_schema_extra=bounds.KIND)
    min_memory: Size | None = None
    mig: Text | None = Field(default=None, json_schema_extra=bounds.PROFILE)


class SubmitBody(BaseModel):
    """A job to submit: a command (``argv``) or a Celery task (``task``)."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_ONE_KIND)

    argv: list[str] | None = Field(
        default=None, description="Program and arguments; no shell.", json_schema_extra=bounds.ARGUMENTS
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of a command.")
    secrets: list[Text] = Field(
        default_factory=list,
        description="Names of secrets on the host that become variables; never their values.",
        json_schema_extra=bounds.SECRETS,
    )
    cwd: Text | None = Field(default=None, description="Working directory of a command.")
    task: Text | None = Field(default=None, description="Name of a Celery task.", json_schema_extra=bounds.TASK)
    args: list[Any] = Field(default_factory=list)
    kwargs: dict[str, Any] = Field(default_factory=dict)
    model: Text | None = Field(
        default=None,
        description="Run the task in a worker pool of this name, or with this model, if there is one.",
        json_schema_extra=bounds.NAME,
    )
    name: Text | None = Field(default=None, json_schema_extra=bounds.NAME)
    queue: Text | None = Field(default=None, json_schema_extra=bounds.WORD)
    gpus: int | None = Field(default=None, description="Whole GPUs of one host.", json_schema_extra=bounds.GPUS)
    gpu_memory: Size | None = Field(default=None, description="A share of one GPU, as 12GiB or a number of MiB.")
    gpu_type: Text | None = Field(
        default=None, description="Models that would do, as H100|A100.", json_schema_extra=bounds.KIND
    )
    min_memory: Size | None = Field(default=None, description="Least memory of each GPU, as 40GiB.")
    mig: Text | None = Field(
        default=None,
        description="MIG instances of this profile in place of cards, as 1g.10gb.",
        json_schema_extra=bounds.PROFILE,
    )
    constraints: Labels = Field(default_factory=dict, description="Labels that the host has.")
    cpus: int | None = Field(
        default=None, description="CPUs of the host that the job is counted with.", json_schema_extra=bounds.CPUS
    )
    memory: Size | None = Field(default=None, description="Memory of the host, likewise, as 64GiB.")
    alternatives: list[AlternativeBody] = Field(
        default_factory=list,
        description="Other GPUs that would do, in order of preference.",
        json_schema_extra=bounds.ALTERNATIVES,
    )
    priority: int | None = Field(default=None, description="0 to 9; 9 starts first.", json_schema_extra=bounds.PRIORITY)
    time_limit: float | None = Field(default=None, description="Seconds.", json_schema_extra=bounds.LIMIT)
    soft_time_limit: float | None = Field(default=None, description="Seconds.", json_schema_extra=bounds.LIMIT)
    grace: float | None = Field(default=None, description="Seconds from TERM to KILL.", json_schema_extra=bounds.GRACE)
    max_attempts: int = Field(default=1, json_schema_extra=bounds.ATTEMPTS)
    retry_on: dict[Text, int | None] | None = Field(
        default=None, description="By failure class, after how many failures at most another attempt follows."
    )
    run_at: JobInstant | None = None
    deadline: JobInstant | None = None
    key: Text | None = Field(default=None, description="Idempotency key.", json_schema_extra=bounds.NAME)
    tenant: Text | None = Field(
        default=None, description="Whose job it is; default: the token's tenant.", json_schema_extra=bounds.WORD
    )

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if self.argv is not None and self.task is not None:
            raise PydanticCustomError("two_kinds", "give argv or task, not both")
        alien = _OF_COMMANDS if self.task is not None else _OF_TASKS
        given = [name for name in alien if name in self.model_fields_set]
        if given:
            kind = "command" if self.task is not None else "task"
            raise PydanticCustomError(
                "other_kind", "{names}: only of a {kind}", {"names": ", ".join(given), "kind": kind}
            )
        return self

    def to_request(self, *, caller: Principal, key: str | None) -> Request:
        """Return the request; its values are checked where all requests are."""
        common: dict[str, Any] = {
            "name": self.name,
            "queue": self.queue,
            "gpus": self.gpus,
            "gpu_memory_mib": parse_mebibytes(self.gpu_memory),
            "gpu_type": self.gpu_type,
            "min_memory_mib": parse_mebibytes(self.min_memory),
            "mig": self.mig,
            "constraints": self.constraints,
            "cpus": self.cpus,
            "memory_mib": parse_mebibytes(self.memory),
            "alternatives": tuple(alternative(other.model_dump(exclude_unset=True)) for other in self.alternatives),
            "priority": self.priority,
            "time_limit_seconds": self.time_limit,
            "soft_time_limit_seconds": self.soft_time_limit,
            "grace_seconds": self.grace,
            "max_attempts": self.max_attempts,
            "retry_on": self.retry_on,
            "run_at": self.run_at,
            "deadline": self.deadline,
            "key": key if self.key is None else self.key,
            "tenant": self.tenant or caller.tenant or DEFAULT_TENANT,
            "submitted_by": caller.name,
        }
        if self.task is not None:
            return TaskRequest(task=self.task, args=tuple(self.args), kwargs=self.kwargs, model=self.model, **common)
        return CommandRequest(
            argv=tuple(self.argv or ()), environment=self.env, secrets=tuple(self.secrets), cwd=self.cwd, **common
        )


def submitted_document(job: Submitted) -> dict[str, Any]:
    """Return the answer to a submit."""
    return {"id": job.id, "state": job.state.value, "created": job.created}


def job_document(job: Job, needs: Sequence[Need] = ()) -> dict[str, Any]:
    """Return a job as people and programs read it, with what it waits for in its canvas."""
    return {
        "id": job.id,
        "name": job.name,
        "task": job.task,
        "kind": job.kind.value,
        "queue": job.queue,
        "tenant": job.tenant,
        "submitted_by": job.submitted_by,
        "root": job.root_id,
        "parent": job.parent_id,
        "group": job.group_id,
        "needs": [{"id": need.id, "state": need.state.value if need.state else None} for need in needs],
        "state": job.state.value,
        "reason": job.reason,
        "held_by": None if job.state in TERMINAL_STATES else job.held_by,
        "priority": job.priority,
        "gpus": job.resources.gpus,
        "gpu_memory_mib": job.resources.gpu_memory_mib,
        "wants": wants_document(job.resources.wants),
        "time_limit": job.time_limit_seconds,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "retry_on": None if job.retry_on is None else dict(job.retry_on),
        "lost_count": job.lost_count,
        "node": job.node,
        "exit_code": job.exit_code,
        "failure_class": job.failure_class.value if job.failure_class else None,
        "error": job.error,
        "result": plain(job.result),
        "progress": plain(job.progress),
        "checkpoint": job.checkpoint,
        "cancel_requested_at": _text(job.cancel_requested_at),
        "run_at": _text(job.run_at),
        "deadline": _text(job.deadline),
        "created_at": _text(job.created_at),
        "queued_at": _text(job.queued_at),
        "started_at": _text(job.started_at),
        "finished_at": _text(job.finished_at),
    }


def attempt_document(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt."""
    return {
        "number": attempt.number,
        "node": attempt.node,
        "lease": attempt.lease_id,
        "gpus": list(attempt.gpus),
        "pid": attempt.pid,
        "started_at": _text(attempt.started_at),
        "ended_at": _text(attempt.ended_at),
        "outcome": attempt.outcome,
        "failure_class": attempt.failure_class,
        "exit_code": attempt.exit_code,
        "error": attempt.error,
        "peak_memory_mib": attempt.peak_memory_mib,
        "peak_gpu_memory_mib": attempt.peak_gpu_memory_mib,
        "isolation": attempt.isolation,
        "choice": attempt.choice,
        "gpu_seconds": attempt.gpu_seconds,
        "gpu_busy_seconds": attempt.gpu_busy_seconds,
    }


def event_document(event: HistoryEvent) -> dict[str, Any]:
    """Return a line of a job's history."""
    return {
        "seq": event.seq,
        "at": _text(event.at),
        "kind": event.kind,
        "node": event.node,
        "lease": event.lease_id,
        "data": plain(dict(event.data)),
    }


@dataclass(frozen=True, slots=True)
class Seen:
    """What is shown of hosts besides their rows, and to whom."""

    holders: Mapping[str, Sequence[GpuHolder]]  # by GPU uuid
    tenant: str | None  # who asks sees of other tenants only that they are there; None: everything


def node_document(node: NodeRecord, seen: Seen) -> dict[str, Any]:
    """Return a host."""
    return {
        "name": node.name,
        "pid": node.pid,
        "worker": node.worker,
        "state": node.state.value,
        "drain": node.drain,
        "live": node.live,
        "degraded": node.degraded,
        "queues": list(node.queues),
        "cpu_slots": node.cpu_slots,
        "cpus": node.cpus,
        "memory_mib": node.memory_mib,
        "labels": dict(node.labels),
        "heartbeat_at": _text(node.heartbeat_at),
        "gpus": [gpu_document(gpu, node, seen) for gpu in node.gpus],
    }


def gpu_document(record: GpuRecord, node: NodeRecord, seen: Seen) -> dict[str, Any]:
    """Return a GPU of a host."""
    return {
        "uuid": record.gpu.uuid,
        "node": record.node,
        "live": node.live,
        "index": record.gpu.index,
        "model": record.gpu.model,
        "memory_mib": record.gpu.memory_mib,
        "used_mib": record.used_mib,
        "reserved_mib": record.reserved_mib,
        "headroom_mib": record.headroom_mib,
        "foreign_mib": record.foreign.used_mib,
        "foreign_by": list(record.foreign.by) if seen.tenant is None else [],
        "clean": record.foreign.clean,
        "utilization_percent": record.utilization_percent,
        "temperature_celsius": record.temperature_celsius,
        "power_watts": record.power_watts,
        "mig_profile": record.gpu.mig_profile,
        "parent_uuid": record.gpu.parent_uuid,
        "numa": record.gpu.numa,
        "links": list(record.gpu.links),
        "health": record.health.value,
        "health_reason": record.health_reason,
        "strikes": record.strikes,
        "warning": record.warning,
        "lease": record.exclusive_lease_id,
        "holders": [_holder_document(holder, seen) for holder in seen.holders.get(record.gpu.uuid, ())],
        "driver_version": record.gpu.driver_version,
    }


def _holder_document(held: GpuHolder, seen: Seen) -> dict[str, Any]:
    """Return a holder; of other tenants' no more than that there is one."""
    may_see = seen.tenant in (None, held.tenant)
    return {
        "lease": held.lease_id,
        "memory_mib": held.memory_mib,
        "jobs": list(held.jobs) if may_see else [],
        "tenant": held.tenant if may_see else None,
        "holder": held.holder if may_see else None,
    }


def plain(value: Any, *, levels: int = 100) -> Any:
    """Return what a job made as every JSON reader can read it.

    NaN and infinities, which Celery's JSON has and JSON has not, become null; so does what is nested below ``levels``.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: plain(inner, levels=levels - 1) for name, inner in value.items()} if levels else None
    if isinstance(value, list):
        return [plain(inner, levels=levels - 1) for inner in value] if levels else None
    return value


def _text(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def asked_gpus(body: Any) -> dict[str, Any]:
    """Return what the body of a lease or a pool asks of GPUs, as its request has it; by default one whole GPU."""
    said = (body.gpu_memory, body.gpu_type, body.min_memory, body.mig)
    return {
        "gpus": 1 if body.gpus is None and all(one is None for one in said) else body.gpus,
        "gpu_memory_mib": parse_mebibytes(body.gpu_memory),
        "gpu_type": body.gpu_type,
        "min_memory_mib": parse_mebibytes(body.min_memory),
        "mig": body.mig,
        "constraints": body.constraints,
    }
