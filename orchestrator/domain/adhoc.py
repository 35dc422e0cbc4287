"""Ad hoc leases: GPUs for a shell, a notebook or somebody's own program, without a job."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Final

from orchestrator.domain.job import LeaseMode, Resources
from orchestrator.domain.request_checks import Checks
from orchestrator.domain.request_wants import AlternativeRequest, check_wants, gpus_of, wants_of
from orchestrator.errors import InvalidRequest

SHORTEST_TTL: Final = 5.0
LONGEST_TTL: Final = 3600.0
#: A holder renews so often within the life of its lease, and gives it up so much of it before its end.
RENEWALS_PER_TTL: Final = 3
MARGIN: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """What somebody asks for; of any type and range, as it may come from outside."""

    gpus: int | None = None
    gpu_memory_mib: int | None = None
    gpu_type: str | None = None
    min_memory_mib: int | None = None
    mig: str | None = None
    constraints: Mapping[str, str] = field(default_factory=dict)
    cpus: int | None = None
    memory_mib: int | None = None
    alternatives: tuple[AlternativeRequest, ...] = ()
    ttl_seconds: float = 15.0
    name: str | None = None  # shown to people
    key: str | None = None
    tenant: str = "default"
    holder: str = "anonymous"


@dataclass(frozen=True, slots=True)
class AdHocLease:
    """A lease without a job, as it is known to everybody."""

    id: int  # the fencing token
    node: str
    gpus: tuple[str, ...]
    mode: LeaseMode
    memory_mib: int | None
    state: str  # active, released or expired
    name: str
    tenant: str
    holder: str
    ttl_seconds: float
    granted_at: datetime
    heartbeat_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    ready_at: datetime | None = None  # when its host confirmed that nothing else is on the GPUs; not usable before
    refusal: str | None = None  # why its host cannot confirm it
    busy_at: datetime | None = None  # when one of its GPUs was last seen at work


def lease_digest(request: LeaseRequest) -> str:
    """Return what tells a request from another one under the same key: all of it, its holder too, but not the key."""
    what = asdict(request) | {"key": None}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def lease_resources(request: LeaseRequest) -> Resources:
    """Check a request and return the resources that it asks for.

    Raises:
        InvalidRequest: Listing everything that is wrong with it.
    """
    checks = Checks()
    check_wants(checks, request)
    checks.optional_name("name", request.name, longest=128)
    checks.optional_text("key", request.key, longest=128)
    checks.word("tenant", request.tenant, longest=64)
    checks.name("holder", request.holder, longest=128)
    ttl = checks.optional_seconds("ttl_seconds", request.ttl_seconds, LONGEST_TTL)
    if ttl is not None and ttl < SHORTEST_TTL:
        checks.add("ttl_seconds", f"must be at least {SHORTEST_TTL:g} seconds, is {ttl:g}")
    if not checks.faults and not gpus_of(request):
        checks.add("gpus", "must ask for a GPU")
    if checks.faults:
        raise InvalidRequest("; ".join(checks.faults))
    return Resources(gpus_of(request), request.gpu_memory_mib, wants_of(request))
