"""Endpoints about callers: who am I, and what was changed by whom."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from orchestrator.api import answers
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import Caller, requires
from orchestrator.api.schemas import MOST_SEQ
from orchestrator.domain.access import Role

routes = APIRouter(tags=["access"])


@routes.get("/whoami", responses=answers.answers(answers.WhoAmI))
def whoami(caller: Caller) -> Any:
    """Tell the caller whom its token stands for."""
    return {"name": caller.name, "role": caller.role.value, "tenant": caller.tenant}


@routes.get("/audit", responses=answers.answers(answers.Audit), dependencies=[Depends(requires(Role.ADMIN))])
def audit(
    given: Given,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[int | None, Query(ge=1, le=MOST_SEQ)] = None,
) -> Any:
    """List what was changed, newest first; ``next`` is the cursor of the following page."""
    lines = given.runtime.access.audit(before_seq=cursor, limit=limit)
    entries = [asdict(line) | {"at": line.at.isoformat() if line.at else None} for line in lines]
    return {"entries": entries, "next": lines[-1].seq if len(lines) == limit else None}
