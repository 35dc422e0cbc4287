"""Endpoints of dead letters: jobs that could not be processed and wait for a person."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api import answers, letter_answers
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import requires
from orchestrator.api.schemas import MOST_SEQ, JobId
from orchestrator.dead_letter_ports import DeadLetter, DeadLetterFilter
from orchestrator.domain.access import Principal, Role
from orchestrator.domain.job import FailureClass
from orchestrator.errors import UnknownDeadLetter

MOST_LETTERS: Final = 500
routes = APIRouter(prefix="/dlq", tags=["dead letters"])

#: Dead letters are told of every tenant, so a token of one is refused.
SEES_ALL: Final = [Depends(requires(Role.VIEWER, every_tenant=True))]
Operator = Annotated[Principal, Depends(requires(Role.OPERATOR))]


class RetryBody(BaseModel):
    """Which dead letters to try again; without a filter all of them."""

    model_config = ConfigDict(extra="forbid")

    queue: str | None = Field(None, max_length=64)
    failure_class: FailureClass | None = None


@routes.get("", dependencies=SEES_ALL, responses=answers.answers(letter_answers.DeadLetters))
def list_letters(
    given: Given,
    queue: Annotated[str | None, Query(max_length=64)] = None,
    failure_class: FailureClass | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LETTERS)] = 100,
    cursor: Annotated[int | None, Query(ge=1, le=MOST_SEQ)] = None,
    before: Annotated[int | None, Query(ge=1, le=MOST_SEQ, deprecated=True, description="As `cursor`.")] = None,
) -> Any:
    """List dead letters, the newest job first; ``next`` is the cursor of the following page."""
    found = given.runtime.letters.list_letters(DeadLetterFilter(queue, failure_class, cursor or before, limit))
    return {
        "dead_letters": [letter_document(letter) for letter in found],
        "next": found[-1].seq if len(found) == limit else None,
    }


@routes.post("/retry", responses=answers.answers(letter_answers.RetriedMany))
def retry_all(given: Given, caller: Operator, body: RetryBody) -> Any:
    """Try a page of dead letters again, and say whether there are more; each on its own, so that repeating is safe."""
    letters = given.runtime.letters
    found = letters.list_letters(DeadLetterFilter(body.queue, body.failure_class, limit=MOST_LETTERS))
    retried = []
    for letter in found:
        try:
            changed = letters.revive(letter.job_id, by=caller.name).changed
        except UnknownDeadLetter:
            continue  # purged since it was listed
        if changed:
            retried.append(letter.job_id)
    given.runtime.wake.publish("place")
    return {"retried": retried, "more": len(found) == MOST_LETTERS}


@routes.post("/purge", responses=answers.answers(letter_answers.PurgedMany))
def purge_all(given: Given, caller: Operator, body: RetryBody) -> Any:
    """Dismiss a page of dead letters and say whether there are more; their jobs are kept as they ended."""
    wanted = DeadLetterFilter(body.queue, body.failure_class, limit=MOST_LETTERS)
    purged = given.runtime.letters.purge_all(wanted, by=caller.name)
    return {"purged": list(purged), "more": len(purged) == MOST_LETTERS}


@routes.get("/{job_id}", dependencies=SEES_ALL, responses=answers.answers(letter_answers.DeadLetter))
def show(given: Given, job_id: JobId) -> Any:
    """Tell of one dead letter."""
    return letter_document(given.runtime.letters.get(job_id))


@routes.post("/{job_id}/retry", responses=answers.answers(letter_answers.Retried))
def retry(given: Given, caller: Operator, job_id: JobId) -> Any:
    """Try a job again with all its attempts; repeating it changes nothing."""
    revived = given.runtime.letters.revive(job_id, by=caller.name)
    if revived.changed:
        given.runtime.wake.publish("place")
    return {"id": revived.job_id, "retried": revived.changed}


@routes.delete("/{job_id}", responses=answers.answers(letter_answers.Purged))
def purge(given: Given, caller: Operator, job_id: JobId) -> Any:
    """Dismiss a dead letter; its job is kept as it ended."""
    given.runtime.letters.purge(job_id, by=caller.name)
    return {"id": job_id, "purged": True}


def letter_document(letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter for programs."""
    return {
        "id": letter.job_id,
        "queue": letter.queue,
        "failure_class": letter.failure_class.value,
        "reason": letter.reason,
        "at": letter.at.isoformat(),
    }
