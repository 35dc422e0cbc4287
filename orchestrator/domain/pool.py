"""Worker pools: runners that are kept for one model, with leases of their own.

A pool says how many runners there are to be; the leader starts and drains them to match. A runner of a pool begins as
an ordinary job in the queue ``preloads`` whose task loads the model; once that has succeeded, the lease outlives the
job and belongs to the pool.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from orchestrator.domain.job import JobState, Resources
from orchestrator.domain.request_checks import Checks
from orchestrator.domain.request_wants import AlternativeRequest, check_wants, gpus_of, wants_of
from orchestrator.pool_errors import InvalidPool

LOAD_QUEUE: Final = "preloads"
DEFAULT_LOADER: Final = "orchestrator.preload"
MOST_RUNNERS: Final = 1024
LONGEST_IDLE_SECONDS: Final = 366 * 86_400.0
LONGEST_LOAD_SECONDS: Final = 86_400.0


class PoolState(StrEnum):
    """Where a pool is; ``failed`` tries again all the same, after longer and longer pauses."""

    STARTING = "starting"  # fewer runners are ready than are to be there at least
    READY = "ready"
    ASLEEP = "asleep"  # its runners keep their models in the hosts' memory, and little of their GPUs'
    DRAINING = "draining"  # its runners end, when their jobs have
    STOPPED = "stopped"  # it has no runner, and gets none until somebody starts it again
    FAILED = "failed"  # its runners did not come up, several times in a row


class Leave(StrEnum):
    """How a runner is to leave its pool."""

    DRAIN = "drain"  # when the jobs that it has are done
    NOW = "now"  # at once: the jobs that it has run again elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRequest:
    """What somebody asks for; of any type and range, as it may come from outside."""

    name: str
    model: str | None = None  # None: as the pool
    task: str = DEFAULT_LOADER  # that loads it
    arguments: Mapping[str, Any] = field(default_factory=dict)  # keywords of the task, besides ``model``
    gpus: int | None = None
    gpu_memory_mib: int | None = None
    gpu_type: str | None = None
    min_memory_mib: int | None = None
    mig: str | None = None
    constraints: Mapping[str, str] = field(default_factory=dict)
    cpus: int | None = None
    memory_mib: int | None = None
    alternatives: tuple[AlternativeRequest, ...] = ()
    least: int = 1
    most: int | None = None  # None: as ``least``, but one at least
    idle_seconds: float | None = None  # None: as the policy says
    load_seconds: float = 600.0
    pinned: bool = False
    tenant: str | None = None
    priority: int = 5


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a pool is to be; checked."""

    model: str
    task: str
    arguments: Mapping[str, Any]
    resources: Resources
    least: int
    most: int
    idle_seconds: float | None
    load_limit_seconds: float  # a load that takes longer has failed
    pinned: bool  # its runners are not given back for being idle
    tenant: str | None  # whose jobs it serves; None: everybody's
    priority: int  # of its loads


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as stored."""

    name: str
    spec: PoolSpec
    generation: int  # counts what its runners are to have loaded: each swap begins another
    wanted: int  # runners that are to be there now
    leave: Leave | None  # its runners are to leave
    asleep: bool  # its runners are to sleep until somebody wakes them, or jobs wait for the model
    state: PoolState
    reason: str | None  # why it is not ready
    failures: int  # in a row
    retry_at: datetime | None  # nothing is started before
    raised_at: datetime  # when ``wanted`` was raised last
    loaded_in_seconds: float | None  # how long the latest load took
    changed_by: str
    created_at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class PoolRunner:
    """A runner that has the model; its lease is the pool's."""

    lease_id: int
    generation: int
    model: str
    node: str
    ready_at: datetime
    used_at: datetime
    running: int  # jobs in its line
    jobs_done: int
    run_seconds: float | None  # what its latest jobs took, on average
    leave: Leave | None
    asleep: bool = False
    ended_at: datetime | None = None  # its lease is over
    gpus: tuple[str, ...] = ()
    memory_mib: int | None = None  # that its lease has of its GPU; None: its GPUs are its own


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """A job that makes a runner."""

    job_id: str
    generation: int
    created_at: datetime
    state: JobState | None = None  # None: it was not submitted, or is gone
    reason: str | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PoolStanding:
    """A pool with everything that there is of it."""

    pool: Pool
    runners: tuple[PoolRunner, ...] = ()
    loads: tuple[PoolLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolChange:
    """What somebody wants changed; None leaves it."""

    least: int | None = None
    most: int | None = None
    wanted: int | None = None  # so many runners at least now, within ``least`` and ``most``
    pinned: bool | None = None
    idle_seconds: float | None = None
    leave: Leave | None = None
    asleep: bool | None = None
    model: str | None = None
    arguments: Mapping[str, Any] | None = None


def new_pool(request: PoolRequest) -> PoolSpec:
    """Check a request and return what it asks for.

    Raises:
        InvalidPool: Listing everything that is wrong with it.
    """
    checks = Checks()
    checks.word("name", request.name, longest=64)
    checks.optional_word("model", request.model, longest=128)
    checks.printable("task", request.task, longest=255)
    checks.document("arguments", request.arguments)
    check_wants(checks, request)
    most = max(1, request.least) if request.most is None and isinstance(request.least, int) else request.most
    _check_size(checks, request.least, most)
    checks.optional_seconds("idle_seconds", request.idle_seconds, LONGEST_IDLE_SECONDS, zero=True)
    checks.optional_seconds("load_seconds", request.load_seconds, LONGEST_LOAD_SECONDS)
    checks.optional_word("tenant", request.tenant, longest=64)
    checks.whole("priority", request.priority, 0, 9)
    if checks.faults:
        raise InvalidPool(checks.faults)
    assert most is not None
    return PoolSpec(
        model=request.model or request.name,
        task=request.task,
        arguments=dict(request.arguments),
        resources=Resources(gpus_of(request), request.gpu_memory_mib, wants_of(request)),
        least=request.least,
        most=most,
        idle_seconds=request.idle_seconds,
        load_limit_seconds=request.load_seconds,
        pinned=request.pinned,
        tenant=request.tenant,
        priority=request.priority,
    )


def changed(pool: Pool, change: PoolChange, *, now: datetime) -> Pool:
    """Return a pool as a change leaves it.

    Raises:
        InvalidPool: Listing everything that is wrong with the change.
    """
    spec = pool.spec
    least = spec.least if change.least is None else change.least
    most = spec.most if change.most is None else change.most
    checks = _check_change(spec, change)
    _check_size(checks, least, most)
    if change.wanted is not None:
        checks.whole("runners", change.wanted, 0, MOST_RUNNERS)
        if not checks.faults and change.wanted > most:
            checks.add("runners", f"must be at most {most}, as many as the pool may have")
    if checks.faults:
        raise InvalidPool(checks.faults)
    spec = replace(
        spec,
        least=least,
        most=most,
        pinned=spec.pinned if change.pinned is None else change.pinned,
        idle_seconds=spec.idle_seconds if change.idle_seconds is None else change.idle_seconds,
        model=spec.model if change.model is None else change.model,
        arguments=spec.arguments if change.arguments is None else dict(change.arguments),
    )
    wanted = min(max(pool.wanted, change.wanted or 0, least), most)
    swapped = (spec.model, spec.arguments) != (pool.spec.model, pool.spec.arguments)
    if change.leave is not None:
        return replace(pool, spec=spec, leave=change.leave, wanted=0, state=PoolState.DRAINING)
    woken = replace(pool, failures=0, retry_at=None, reason=None) if pool.failures else pool
    asleep = change.asleep if change.asleep is not None else pool.asleep and change.wanted is None
    return replace(
        woken,
        spec=spec,
        wanted=wanted,
        asleep=asleep,
        generation=pool.generation + swapped,
        raised_at=now if wanted > pool.wanted or change.wanted is not None else pool.raised_at,
    )


def _check_change(spec: PoolSpec, change: PoolChange) -> Checks:
    checks = Checks()
    checks.optional_seconds("idle_seconds", change.idle_seconds, LONGEST_IDLE_SECONDS, zero=True)
    checks.optional_word("model", change.model, longest=128)
    if change.arguments is not None:
        checks.document("arguments", change.arguments)
    if change.asleep and any(option.gpu_memory_mib is None for option in spec.resources.options):
        checks.add("sleep", "is for runners with a share of a GPU (gpu_memory): nobody could use what others free")
    return checks


def restarted(pool: Pool, spec: PoolSpec, *, now: datetime) -> Pool:
    """Return a pool that was stopped, or is about to be, started again with what it is to be now."""
    swapped = (spec.model, spec.task, spec.arguments, spec.resources) != (
        pool.spec.model, pool.spec.task, pool.spec.arguments, pool.spec.resources
    )  # fmt: skip
    return replace(
        pool,
        spec=spec,
        generation=pool.generation + swapped,
        wanted=spec.least,
        leave=None,
        asleep=False,
        state=PoolState.STARTING,
        reason=None,
        failures=0,
        retry_at=None,
        raised_at=now,
    )


def _check_size(checks: Checks, least: object, most: object) -> None:
    faults = len(checks.faults)
    checks.whole("min", least, 0, MOST_RUNNERS)
    checks.whole("max", most, 1, MOST_RUNNERS)
    if len(checks.faults) == faults and isinstance(least, int) and isinstance(most, int) and least > most:
        checks.add("min", f"must be at most max, {most}")
