"""Endpoints for whoever runs the installation: sweeps by hand."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from orchestrator.api import answers, problems
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import requires
from orchestrator.domain.access import Role
from orchestrator.services.hand_sweeps import RECLAIM, sweep_by_hand, sweep_table

routes = APIRouter(prefix="/control", tags=["control"])

SweepName = Annotated[str, Path(max_length=32, description="The name of a sweep.")]


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
