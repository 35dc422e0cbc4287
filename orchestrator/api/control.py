"""Endpoints for whoever runs the installation: sweeps by hand, another leader, a purge."""

from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api import answers, problems
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import requires
from orchestrator.domain.access import Principal, Role
from orchestrator.domain.policy import LONGEST_SECONDS
from orchestrator.errors import Conflict
from orchestrator.services.hand_sweeps import RECLAIM, sweep_by_hand, sweep_table

routes = APIRouter(prefix="/control", tags=["control"])

Admin = Annotated[Principal, Depends(requires(Role.ADMIN))]
#: Jobs that a request deletes at most.
MOST_PURGED: Final = 500
#: Whoever waits for the end of a job has seen it after so long.
LEAST_AGE: Final = timedelta(hours=1)

SweepName = Annotated[str, Path(max_length=32, description="The name of a sweep.")]


class PurgeBody(BaseModel):
    """Which jobs to delete."""

    model_config = ConfigDict(extra="forbid", strict=True)

    older_than_seconds: Annotated[float, Field(ge=LEAST_AGE.total_seconds(), le=LONGEST_SECONDS)] = Field(
        description="Those that ended longer ago."
    )
    dry_run: bool = Field(default=False, description="Delete nothing, and count them all.")


class PurgedJobs(BaseModel):
    """How many jobs were deleted, or would be."""

    jobs: int
    more: bool
    dry_run: bool


class Deposed(BaseModel):
    """Whose term has been ended."""

    leader: str
    epoch: int


@routes.get("/sweeps", responses=answers.answers(answers.SweepRecords))
def sweeps(given: Given) -> Any:
    """List the leader's sweeps, most urgent first, with what they did so far."""
    records = {record.name: record for record in given.runtime.sweep_log.read()}
    documents = []
    for sweep in sweep_table(given.runtime):
        record = records.get(sweep.name)
        documents.append(
            {
                "name": sweep.name,
                "every_seconds": sweep.every_seconds,
                "passes": record.passes if record else 0,
                "did": record.did if record else 0,
                "failures": record.failures if record else 0,
                "seconds": record.seconds if record else 0.0,
                "last_at": record.last_at.isoformat() if record else None,
                "last_did": record.last_did if record else None,
                "last_seconds": record.last_seconds if record else None,
                "last_error": record.last_error if record else None,
                "epoch": record.epoch if record else None,
            }
        )
    return {"sweeps": documents}


@routes.post(
    "/sweeps/{name}",
    responses={**answers.answers(answers.SweepPass), **problems.responses(409)},
    dependencies=[Depends(requires(Role.ADMIN))],
)
def sweep(given: Given, name: SweepName) -> Any:
    """Run one pass of a sweep now."""
    return asdict(sweep_by_hand(given.runtime, name)[0])


@routes.post(
    "/reclaim",
    responses={**answers.answers(answers.Reclaimed), **problems.responses(409)},
    dependencies=[Depends(requires(Role.ADMIN))],
)
def reclaim(given: Given) -> Any:
    """Give back now what somebody took and does not do: expired leases, lost hosts, missing entries."""
    passes = sweep_by_hand(given.runtime, *RECLAIM)
    return {"reclaimed": True, "did": sum(one.did for one in passes), "sweeps": [asdict(one) for one in passes]}


@routes.post("/purge", responses=answers.answers(PurgedJobs))
def purge(given: Given, caller: Admin, body: PurgeBody) -> Any:
    """Delete up to 500 jobs that ended long ago, with all that is theirs; dead letters are kept. Repeatable."""
    age = timedelta(seconds=body.older_than_seconds)
    if body.dry_run:
        return {"jobs": given.runtime.purges.count_ended(age), "more": False, "dry_run": True}
    jobs = given.runtime.purges.purge_ended(age, limit=MOST_PURGED, by=caller.name)
    return {"jobs": jobs, "more": jobs == MOST_PURGED, "dry_run": False}


@routes.post("/depose", responses={**answers.answers(Deposed), **problems.responses(409)})
def depose(given: Given, _: Admin) -> Any:
    """End the leader's term: another beat leads within a second, and what the old one writes changes nothing."""
    term = given.runtime.leadership.current()
    if term is None:
        raise Conflict("nobody leads")
    given.runtime.leadership.resign(term.holder, term.epoch)
    return {"leader": term.holder, "epoch": term.epoch}
