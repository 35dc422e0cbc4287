"""Who the work is for."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from orchestrator.api import answers
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import Caller
from orchestrator.domain.access import Token
from orchestrator.domain.job import JobState

routes = APIRouter(prefix="/tenants", tags=["tenants"])


class Tenant(BaseModel):
    """A tenant: a name that jobs and tokens carry."""

    name: str
    jobs: dict[JobState, int]
    tokens: int


class Tenants(BaseModel):
    """The tenants."""

    tenants: list[Tenant]


@routes.get("", responses=answers.answers(Tenants))
def tenants(given: Given, caller: Caller) -> Any:
    """List the tenants that have jobs or tokens in force; a tenant's caller is told of its own."""
    jobs = given.runtime.jobs.count_by_tenant(tenant=caller.tenant)
    now = given.runtime.clock.now()
    tokens: dict[str, int] = {}
    for token in given.runtime.access.tokens():
        if token.tenant is not None and _is_in_force(token, now) and caller.sees(token.tenant):
            tokens[token.tenant] = tokens.get(token.tenant, 0) + 1
    return {
        "tenants": [
            {
                "name": name,
                "jobs": {state.value: count for state, count in jobs.get(name, {}).items()},
                "tokens": tokens.get(name, 0),
            }
            for name in sorted(jobs.keys() | tokens.keys())
        ]
    }


def _is_in_force(token: Token, now: datetime) -> bool:
    return token.revoked_at is None and (token.expires_at is None or token.expires_at > now)
