"""Job endpoints."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import Discriminator, Tag
from starlette.concurrency import run_in_threadpool

from orchestrator.api import answers, problems
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import Caller, requires
from orchestrator.api.schemas import (
    MOST_SEQ,
    JobId,
    SubmitBody,
    attempt_document,
    job_document,
    submitted_document,
)
from orchestrator.api.versions import NOT_MODIFIED, versioned
from orchestrator.config import Settings
from orchestrator.domain.access import Principal, Role, refused_command
from orchestrator.domain.canvas import Need
from orchestrator.domain.job import Job, JobState
from orchestrator.domain.request import LONGEST_TASK_ID
from orchestrator.errors import Forbidden, InvalidRequest, UnknownJob
from orchestrator.observe import traces
from orchestrator.ports import JobFilter, LogPage
from orchestrator.runtime import Runtime
from orchestrator.services.why import explain

MOST_JOBS: Final = 500
LONGEST_WAIT: Final = 20.0
#: How soon a waiting request looks for output again: at first, and in the end.
POLL: Final = 0.1
SLOWEST_POLL: Final = 0.5
LOG_PAGE: Final = 200
MOST_CHUNKS: Final = 1000
MOST_LINES: Final = 10_000
#: An attempt's number in the database.
MOST_ATTEMPT: Final = (1 << 31) - 1

#: Told apart before they are read, so that faults are told of the shape that was meant.
OneOrMany = Annotated[
    Annotated[SubmitBody, Tag("job")] | Annotated[list[SubmitBody], Tag("jobs")],
    Discriminator(lambda body: "jobs" if isinstance(body, list) else "job"),
]
_SUBMITTED: Final = answers.Submitted | list[answers.Submitted]
#: What a submit answers.
SUBMITTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {"model": _SUBMITTED, "description": "Every job existed already, under the same key."},
    201: {"model": _SUBMITTED, "description": "At least one job was created."},
    **problems.responses(409),
}

routes = APIRouter(prefix="/jobs", tags=["jobs"])


@routes.post("/submit", status_code=201, responses=SUBMITTED)
def submit(
    given: Given,
    caller: Annotated[Principal, Depends(requires(Role.SUBMITTER))],
    response: Response,
    body: OneOrMany,
    idempotency_key: Annotated[str | None, Header(max_length=128)] = None,
    traceparent: Annotated[str | None, Header(max_length=128, description="The trace to join (W3C).")] = None,
) -> Any:
    """Submit one job, or several at once: all of them or none. When it answers, they are durable."""
    bodies = body if isinstance(body, list) else [body]
    if not 1 <= len(bodies) <= 10_000:
        raise InvalidRequest("submit 1 to 10000 jobs at once")
    if isinstance(body, list) and idempotency_key is not None:
        raise InvalidRequest("Idempotency-Key names one job; give each of several its own key in the body")
    if idempotency_key is not None and any(one.key not in (None, idempotency_key) for one in bodies):
        raise InvalidRequest("Idempotency-Key and the body's key differ; give one of them")
    for one in bodies:
        _refuse_forbidden(one, caller, given.runtime.settings)
    with traces.submitting(traceparent) as context:
        asked = [one.to_request(caller=caller, key=idempotency_key) for one in bodies]
        found = given.submits.submit([replace(one, traceparent=context) for one in asked])
    if not any(job.created for job in found):
        response.status_code = 200
    documents = [submitted_document(job) for job in found]
    return documents if isinstance(body, list) else documents[0]


@routes.get("", responses=answers.answers(answers.Jobs))
def list_jobs(
    given: Given,
    caller: Caller,
    state: Annotated[list[JobState] | None, Query()] = None,
    queue: Annotated[str | None, Query(max_length=64)] = None,
    name: Annotated[str | None, Query(max_length=128)] = None,
    tenant: Annotated[str | None, Query(max_length=64)] = None,
    root: Annotated[str | None, Query(max_length=LONGEST_TASK_ID)] = None,
    group: Annotated[str | None, Query(max_length=LONGEST_TASK_ID)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_JOBS)] = 100,
    cursor: Annotated[int | None, Query(ge=1, le=MOST_SEQ)] = None,
) -> Any:
    """List jobs, newest first; ``next`` is the cursor of the following page."""
    if tenant is not None and not caller.sees(tenant):
        return {"jobs": [], "next": None}  # as of a tenant that has none
    states = frozenset(state) if state else None
    whose = tenant or caller.tenant
    wanted = JobFilter(states, queue, whose, name, cursor, root_id=root, group_id=group, limit=limit)
    found = given.runtime.jobs.list_jobs(wanted)
    needs = _needs(given.runtime, found)
    following = found[-1].seq if len(found) == limit else None
    return {"jobs": [job_document(job, needs.get(job.id, ())) for job in found], "next": following}


@routes.get("/{job_id}", responses={**answers.answers(answers.JobWithAttempts), **NOT_MODIFIED})
def show(
    given: Given, caller: Caller, job_id: JobId, if_none_match: Annotated[str | None, Header(max_length=1024)] = None
) -> Response:
    """Show a job with its attempts; 304 if it is as the ETag in If-None-Match says."""
    job = visible_job(given.runtime, caller, job_id)
    document = job_document(job, _needs(given.runtime, [job]).get(job.id, ()))
    attempts = [attempt_document(one) for one in given.runtime.jobs.attempts(job_id)]
    return versioned(document | {"attempts": attempts}, if_none_match)


@routes.post("/{job_id}/cancel", responses=answers.answers(answers.Cancelled))
def cancel(given: Given, caller: Annotated[Principal, Depends(requires(Role.SUBMITTER))], job_id: JobId) -> Any:
    """Cancel a job: it does not start any more, or its worker ends it. Repeating it changes nothing."""
    visible_job(given.runtime, caller, job_id)
    outcome = given.cancels.cancel(job_id, by=caller.name, reason="asked for")
    return job_document(outcome.job) | {"cancelled": outcome.cancelled, "stopping": outcome.stopping}


@routes.get("/{job_id}/logs", responses=answers.answers(answers.Output))
async def logs(
    given: Given,
    caller: Caller,
    request: Request,
    job_id: JobId,
    after: Annotated[str | None, Query(pattern=r"^\d{1,9}:\d{1,9}$", description="`next` of the page before.")] = None,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_CHUNKS, description="Chunks at most.")] = LOG_PAGE,
    tail: Annotated[int | None, Query(ge=0, le=MOST_LINES, description="The last lines; not with `after`.")] = None,
    attempt: Annotated[int | None, Query(ge=1, le=MOST_ATTEMPT, description="Of this attempt alone.")] = None,
) -> Any:
    """Return output after a cursor, or the last lines; waits for some, up to ``wait`` seconds, while more may come."""
    look = _looking(given.runtime, job_id, after, tail, limit, attempt)
    await run_in_threadpool(visible_job, given.runtime, caller, job_id)
    deadline, pause = time.monotonic() + wait, POLL
    with given.stays.of(caller) as stay:
        while True:
            stay.check()
            # Who waits holds no thread between two looks: 40 followers would leave none for anybody else.
            page = await run_in_threadpool(look)
            left = deadline - time.monotonic()
            if page.chunks or page.ended or left <= 0 or given.stopping.is_set() or await request.is_disconnected():
                break
            await asyncio.sleep(min(pause, left))
            pause = min(SLOWEST_POLL, 1.5 * pause)
    last = page.chunks[-1] if page.chunks else None
    return {
        "chunks": [{"attempt": a, "number": n, "text": text} for a, n, text in page.chunks],
        "next": f"{last[0]}:{last[1]}" if last else after,
        "ended": page.ended,
    }


@routes.get("/{job_id}/why", responses=answers.answers(answers.Why))
def why(given: Given, caller: Caller, job_id: JobId) -> Any:
    """Say why a job waits."""
    job = visible_job(given.runtime, caller, job_id)
    return {
        "id": job.id,
        "state": job.state.value,
        "reasons": [asdict(reason) for reason in explain(given.runtime, job_id)],
    }


def _looking(
    runtime: Runtime, job_id: str, after: str | None, tail: int | None, limit: int, attempt: int | None
) -> Callable[[], LogPage]:
    if tail is not None:
        if after is not None:
            raise InvalidRequest("say after or tail, not both: a page after the last lines begins at its next")
        return partial(runtime.jobs.log_tail, job_id, lines=tail, limit=MOST_CHUNKS, attempt=attempt)
    of_attempt, _, number = (after or "0:0").partition(":")
    cursor = (int(of_attempt), int(number)) if after else None
    return partial(runtime.jobs.logs, job_id, after=cursor, limit=limit, attempt=attempt)


def _needs(runtime: Runtime, jobs: Sequence[Job]) -> Mapping[str, Sequence[Need]]:
    blocked = [job.id for job in jobs if job.state is JobState.BLOCKED]
    return runtime.jobs.needs(blocked) if blocked else {}


def visible_job(runtime: Runtime, caller: Principal, job_id: str) -> Job:
    """Return a job of a tenant that the caller sees.

    Raises:
        UnknownJob: If there is none: another tenant's job is answered as one that never was.
    """
    job = runtime.jobs.get(job_id)
    if job is None or not caller.sees(job.tenant):
        raise UnknownJob(job_id)
    return job


def _refuse_forbidden(body: SubmitBody, caller: Principal, settings: Settings) -> None:
    if body.tenant is not None and not caller.sees(body.tenant):
        raise Forbidden(f"this token submits jobs of tenant {caller.tenant} only")
    if body.argv is not None:
        allowed = settings.allowed_commands
        refused = refused_command(caller.role, body.argv, environment=body.env, allowed=allowed)
        if refused is not None:
            raise Forbidden(refused)
