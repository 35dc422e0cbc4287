"""Endpoints of leases without a job."""

import asyncio
import time
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from orchestrator.api import answers, bounds, problems
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import Caller, requires
from orchestrator.api.schemas import MOST_SEQ, Labels, Size, asked_gpus
from orchestrator.api.stays import Stay
from orchestrator.domain.access import DEFAULT_TENANT, Principal, Role
from orchestrator.domain.adhoc import MARGIN, RENEWALS_PER_TTL, AdHocLease, LeaseRequest
from orchestrator.domain.job import LeaseMode
from orchestrator.errors import Forbidden, NoGpuFree, OrchestratorError
from orchestrator.services.adhoc import Granted, LeaseService

routes = APIRouter(prefix="/leases", tags=["leases"])

LONGEST_WAIT: Final = 30.0
#: How soon a waiting request asks again: at first, and in the end.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0
MOST_LEASES: Final = 500
#: How soon it is looked whether a host has confirmed a lease.
LOOK_PAUSE: Final = 0.05

Text = Annotated[str, Field(max_length=4096)]
Token = Annotated[str, Path(max_length=128)]


class LeaseBody(BaseModel):
    """The GPUs to lease."""

    model_config = ConfigDict(extra="forbid", strict=True)

    gpus: int | None = Field(
        default=None, description="Whole GPUs of one host; default: 1.", json_schema_extra=bounds.GPUS
    )
    gpu_memory: Size | None = Field(default=None, description="A share of one GPU, as 12GiB or a number of MiB.")
    gpu_type: Text | None = Field(
        default=None, description="Models that would do, as H100|A100.", json_schema_extra=bounds.KIND
    )
    min_memory: Size | None = Field(default=None, description="Least memory of each GPU, as 40GiB.")
    mig: Text | None = Field(
        default=None, description="MIG instances of this profile in place of cards.", json_schema_extra=bounds.PROFILE
    )
    constraints: Labels = Field(default_factory=dict, description="Labels of the host; node names one.")
    ttl_seconds: float = Field(
        default=15.0, description="The lease lives so long after its last heartbeat.", json_schema_extra=bounds.TTL
    )
    wait_seconds: Annotated[float, Field(ge=0, le=LONGEST_WAIT)] = Field(
        default=0.0, description="Wait so long for GPUs to become free."
    )
    name: Text | None = Field(default=None, description="What people see.", json_schema_extra=bounds.NAME)
    tenant: Text | None = Field(
        default=None, description="Whose it is; default: the token's tenant.", json_schema_extra=bounds.WORD
    )

    def to_request(self, caller: Principal, key: str | None) -> LeaseRequest:
        """Return the request; its values are checked where all requests are."""
        return LeaseRequest(
            **asked_gpus(self),
            ttl_seconds=self.ttl_seconds,
            name=self.name,
            key=key,
            tenant=self.tenant or caller.tenant or DEFAULT_TENANT,
            holder=caller.name,
        )


class Lease(BaseModel):
    """A lease without a job."""

    id: int
    name: str
    node: str
    gpus: list[str]
    mode: LeaseMode
    memory_mib: int | None
    state: Literal["active", "released", "expired"]
    tenant: str
    holder: str
    ttl_seconds: float
    granted_at: AwareDatetime
    heartbeat_at: AwareDatetime
    expires_at: AwareDatetime
    ended_at: AwareDatetime | None
    ready_at: AwareDatetime | None = Field(description="Its host has confirmed that nothing else is on the GPUs.")
    busy_at: AwareDatetime | None = Field(description="One of its GPUs was last seen at work; null: never.")


class GrantedLease(Lease):
    """A new lease, with what its holder needs."""

    token: str
    fencing_token: int
    renew_seconds: float = Field(description="Send a heartbeat so often.")
    trust_seconds: float = Field(description="Stop using the GPUs so long after the last heartbeat was sent.")


class Leases(BaseModel):
    """A page of leases."""

    leases: list[Lease]
    next: int | None


#: What a grant answers.
GRANTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": GrantedLease, "description": "It was granted before, under the same key; the token is a new one."},
    **answers.answers(GrantedLease, 201),
    **problems.responses(409),
}


@routes.post("", status_code=201, responses=GRANTED)
async def grant(
    given: Given,
    caller: Annotated[Principal, Depends(requires(Role.SUBMITTER))],
    body: LeaseBody,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=128)] = None,
) -> Any:
    """Lease GPUs; answered when their host has made sure that nothing else is left on them.

    The token is told here and never again; with the same key while the lease lives, a new one is.
    """
    if body.tenant is not None and not caller.sees(body.tenant):
        raise Forbidden(f"this token leases GPUs for tenant {caller.tenant} only")
    service, request = LeaseService(given.runtime), body.to_request(caller, idempotency_key)
    begun = time.monotonic()
    try:
        with given.stays.of(caller) as stay:
            granted = await _await_grant(given, stay, service, request, until=begun + body.wait_seconds)
    except OrchestratorError as error:
        given.lease_requests.refused(error)
        raise
    given.lease_requests.granted(time.monotonic() - begun)
    if not granted.created:
        response.status_code = 200
    return _granted_document(granted)


@routes.post("/{token}/heartbeat", responses={**answers.answers(Lease), **problems.responses(409)})
def heartbeat(given: Given, caller: Annotated[Principal, Depends(requires(Role.SUBMITTER))], token: Token) -> Any:
    """Extend a lease by its TTL, from now on; refused once it is not live: stop using the GPUs then."""
    return lease_document(LeaseService(given.runtime).renew(token, tenant=caller.tenant))


@routes.post("/{token}/release", responses=answers.answers(Lease))
def release(given: Given, caller: Annotated[Principal, Depends(requires(Role.SUBMITTER))], token: Token) -> Any:
    """End a lease; repeating it changes nothing. An operator may name it by its number in place of its token."""
    service = LeaseService(given.runtime)
    if token.isdecimal() and len(token) < len(str(MOST_SEQ)):
        requires(Role.OPERATOR, every_tenant=True).check(caller)
        return lease_document(service.end(int(token), by=caller.name))
    return lease_document(service.release(token, tenant=caller.tenant, by=caller.name))


@routes.get("", responses=answers.answers(Leases))
def list_leases(
    given: Given,
    caller: Caller,
    ended: Annotated[bool, Query(description="Those that have ended too.")] = False,
    limit: Annotated[int, Query(ge=1, le=MOST_LEASES)] = 100,
    cursor: Annotated[int | None, Query(ge=1, le=MOST_SEQ)] = None,
) -> Any:
    """List leases without a job, newest first; ``next`` is the cursor of the following page."""
    found = given.runtime.leases.leases(tenant=caller.tenant, active=not ended, before=cursor, limit=limit)
    following = found[-1].id if len(found) == limit else None
    return {"leases": [lease_document(lease) for lease in found], "next": following}


async def _await_grant(
    given: Given, stay: Stay, service: LeaseService, request: LeaseRequest, *, until: float
) -> Granted:
    pause = FIRST_PAUSE
    while True:
        stay.check()
        try:
            return await _handed_over(given, stay, service, request)
        except NoGpuFree:
            if time.monotonic() + pause > until or given.stopping.is_set():
                raise
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)


def lease_document(lease: AdHocLease) -> dict[str, Any]:
    """Return a lease as people and programs read it."""
    return {
        "id": lease.id,
        "name": lease.name,
        "node": lease.node,
        "gpus": list(lease.gpus),
        "mode": lease.mode.value,
        "memory_mib": lease.memory_mib,
        "state": lease.state,
        "tenant": lease.tenant,
        "holder": lease.holder,
        "ttl_seconds": lease.ttl_seconds,
        "granted_at": lease.granted_at.isoformat(),
        "heartbeat_at": lease.heartbeat_at.isoformat(),
        "expires_at": lease.expires_at.isoformat(),
        "ended_at": lease.ended_at.isoformat() if lease.ended_at else None,
        "ready_at": lease.ready_at.isoformat() if lease.ready_at else None,
        "busy_at": lease.busy_at.isoformat() if lease.busy_at else None,
    }


async def _handed_over(given: Given, stay: Stay, service: LeaseService, request: LeaseRequest) -> Granted:
    """Return a lease that may be used; what cannot be handed over any more is released."""
    handover = await run_in_threadpool(service.take, request)
    granted = None
    while granted is None:
        if given.stopping.is_set() or stay.ended:
            await run_in_threadpool(service.release, handover.token, by=request.holder)
            stay.check()
            raise NoGpuFree(("the API stops",))
        await asyncio.sleep(LOOK_PAUSE)
        granted = await run_in_threadpool(service.settle, handover)
    return granted


def _granted_document(granted: Granted) -> dict[str, Any]:
    ttl = granted.lease.ttl_seconds
    return lease_document(granted.lease) | {
        "token": granted.token,
        "fencing_token": granted.lease.id,
        "renew_seconds": ttl / RENEWALS_PER_TTL,
        "trust_seconds": ttl * (1 - MARGIN),
    }
