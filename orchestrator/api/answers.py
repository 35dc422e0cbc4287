"""What the API answers, as its OpenAPI document describes it.

Descriptions only: answers are built as plain documents (``schemas``) and sent as they are; the tests compare the two.
Programs must expect fields that they do not know: adding one is not a breaking change.
"""

from typing import Any

from pydantic import AwareDatetime, BaseModel

from orchestrator.domain.access import Role
from orchestrator.domain.cluster import GpuHealth, NodeState
from orchestrator.domain.job import JobKind, JobState
from orchestrator.domain.usage import UsageKey


class Submitted(BaseModel):
    id: str
    state: JobState
    created: bool


class Need(BaseModel):
    id: str
    state: JobState | None


class Job(BaseModel):
    id: str
    name: str
    task: str
    kind: JobKind
    queue: str
    tenant: str
    submitted_by: str
    root: str | None
    parent: str | None
    group: str | None
    needs: list[Need]
    state: JobState
    reason: str | None
    held_by: str | None
    priority: int
    gpus: int
    gpu_memory_mib: int | None
    wants: dict[str, Any]
    time_limit: float | None
    attempt: int
    max_attempts: int
    retry_on: dict[str, int] | None
    lost_count: int
    node: str | None
    exit_code: int | None
    failure_class: str | None
    error: str | None
    result: Any
    progress: dict[str, Any] | None
    checkpoint: str | None
    cancel_requested_at: AwareDatetime | None
    run_at: AwareDatetime | None
    deadline: AwareDatetime | None
    created_at: AwareDatetime
    queued_at: AwareDatetime | None
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None


class Attempt(BaseModel):
    number: int
    node: str
    lease: int
    gpus: list[str]
    pid: int | None
    started_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    outcome: str | None
    failure_class: str | None
    exit_code: int | None
    error: str | None
    peak_memory_mib: int | None
    peak_gpu_memory_mib: int | None
    isolation: str | None
    choice: int | None  # 1 is what the job asks for first, 2 the first of its alternatives
    gpu_seconds: float
    gpu_busy_seconds: float | None


class JobWithAttempts(Job):
    attempts: list[Attempt]


class Cancelled(Job):
    cancelled: bool
    stopping: bool


class JobChanged(Job):
    changed: bool


class OrderResult(BaseModel):
    id: str
    changed: bool
    state: JobState | None
    problem: str | None
    detail: str | None


class Orders(BaseModel):
    results: list[OrderResult]


class CanvasCancelled(BaseModel):
    tree: str | None = None
    group: str | None = None
    cancelled: list[str]
    stopping: list[str]


class Jobs(BaseModel):
    jobs: list[Job]
    next: int | None


class Chunk(BaseModel):
    attempt: int
    number: int
    text: str


class Output(BaseModel):
    chunks: list[Chunk]
    next: str | None
    ended: bool


class Reason(BaseModel):
    code: str
    words: str


class Why(BaseModel):
    id: str
    state: JobState
    reasons: list[Reason]


class Event(BaseModel):
    seq: int
    at: AwareDatetime
    kind: str
    node: str | None
    lease: int | None
    data: dict[str, Any]


class Events(BaseModel):
    events: list[Event]
    next: int


class ClusterEvent(Event):
    job: str | None
    tenant: str | None
    state: JobState | None


class ClusterEvents(BaseModel):
    events: list[ClusterEvent]
    next: int


class GpuHolder(BaseModel):
    lease: int
    memory_mib: int | None
    jobs: list[str]
    tenant: str | None
    holder: str | None


class Gpu(BaseModel):
    uuid: str
    node: str
    live: bool
    index: int
    model: str
    memory_mib: int
    used_mib: int
    reserved_mib: int
    headroom_mib: int
    foreign_mib: int
    foreign_by: list[str]
    clean: bool
    utilization_percent: int | None
    temperature_celsius: int | None
    power_watts: float | None
    mig_profile: str | None
    parent_uuid: str | None
    numa: int | None
    links: list[str]
    health: GpuHealth
    health_reason: str | None
    strikes: int
    warning: str | None
    lease: int | None
    holders: list[GpuHolder]
    driver_version: str


class Gpus(BaseModel):
    gpus: list[Gpu]


class Node(BaseModel):
    name: str
    pid: int
    worker: str
    state: NodeState
    drain: bool
    live: bool
    degraded: bool
    queues: list[str]
    cpu_slots: int
    cpus: int
    memory_mib: int
    labels: dict[str, str]
    heartbeat_at: AwareDatetime
    gpus: list[Gpu]


class Drain(BaseModel):
    name: str
    state: NodeState
    drain: bool
    changed: bool
    withdrawn: int


class SweepRecord(BaseModel):
    name: str
    every_seconds: float
    passes: int
    did: int
    failures: int
    seconds: float
    last_at: AwareDatetime | None
    last_did: int | None
    last_seconds: float | None
    last_error: str | None
    epoch: int | None


class SweepRecords(BaseModel):
    sweeps: list[SweepRecord]


class SweepPass(BaseModel):
    name: str
    did: int
    seconds: float
    more: bool
    epoch: int


class Reclaimed(BaseModel):
    reclaimed: bool
    did: int
    sweeps: list[SweepPass]


class Nodes(BaseModel):
    nodes: list[Node]


class Queue(BaseModel):
    name: str
    paused: bool
    paused_by: str | None
    most_running: int | None
    time_limit: float | None
    version: int
    jobs: dict[JobState, int]


class PausedQueue(Queue):
    withdrawn: int


class Policy(BaseModel):
    safe_mode: bool
    pool_idle_seconds: float
    max_gpu_memory_fraction: float
    version: int
    changed_by: str | None
    changed_at: AwareDatetime | None


class Queues(BaseModel):
    queues: list[Queue]


class Cluster(BaseModel):
    version: str
    api_url: str
    leader: str | None
    leader_host: str | None
    leader_pid: int | None
    leader_since: AwareDatetime | None
    epoch: int | None
    database: str | None
    redis: str | None
    nodes: int
    jobs: dict[JobState, int]


class UsageLine(BaseModel):
    key: str
    jobs: int
    attempts: int
    gpu_seconds: float
    busy_gpu_seconds: float
    wasted_gpu_seconds: float


class Usage(BaseModel):
    by: UsageKey
    since: AwareDatetime
    until: AwareDatetime
    usage: list[UsageLine]
    left_out: int
    total: UsageLine


class WhoAmI(BaseModel):
    name: str
    role: Role
    tenant: str | None


class AuditLine(BaseModel):
    seq: int
    at: AwareDatetime
    request_id: str
    actor: str
    role: Role
    tenant: str | None
    action: str
    target: str
    outcome: str


class Audit(BaseModel):
    entries: list[AuditLine]
    next: int | None


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    status: str
    checks: dict[str, bool]


def answers(model: Any, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """Return how OpenAPI describes a success: for ``responses=`` of a route."""
    return {status: {"model": model}}
