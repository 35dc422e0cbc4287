"""Endpoints of the history: pages of it, and streams of server-sent events that go on as things happen."""

import contextlib
import json
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from orchestrator.api import answers
from orchestrator.api.dependencies import Given, Services
from orchestrator.api.feed import Follower, ends
from orchestrator.api.guard import Caller
from orchestrator.api.jobs import LONGEST_WAIT, visible_job
from orchestrator.api.schemas import MOST_SEQ, JobId, plain
from orchestrator.api.stays import Stay
from orchestrator.domain.access import Principal
from orchestrator.domain.job import Job, JobState
from orchestrator.errors import InvalidRequest, OrchestratorError
from orchestrator.event_ports import Chunk, Cursor, FeedEvent

PAGE: Final = 500
EVENT_STREAM: Final = "text/event-stream"
#: A connection that is silent for longer is taken for dead by what stands between.
HEARTBEAT_SECONDS: Final = 15.0
#: Then a follower comes again, so that followers spread over the processes that there are by then.
LONGEST_STREAM: Final = 900.0
HEARTBEAT: Final = b": still here\n\n"
#: Where a follower had got to: an event's number, and for a job also a place in its output.
_PLACE: Final = re.compile(r"(\d{1,19})(?:-(\d{1,9})-(\d{1,9}|-1))?")


def _events_of(*kinds: str) -> dict[str, Any]:
    """Describe a stream: before OpenAPI 3.2, the schema of one is that of each of its events."""
    data = {"type": "string", "contentMediaType": "application/json"}
    fields = {"event": {"type": "string", "enum": list(kinds)}, "id": {"type": "string"}, "data": data}
    return {EVENT_STREAM: {"schema": {"type": "object", "properties": fields, "required": ["event", "data"]}}}


OF_A_JOB: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Server-sent events.",
        "content": _events_of("state", "output", "progress", "lagged", "problem", "end"),
    }
}

routes = APIRouter(tags=["events"])

After = Annotated[int, Query(ge=0, le=MOST_SEQ, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=PAGE)]
Wait = Annotated[float, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for an event, if there is none.")]
LastEventId = Annotated[str | None, Header(max_length=64, description="Where to go on: the `id` read last.")]


@routes.get("/jobs/{job_id}/events", responses=answers.answers(answers.Events))
async def of_job(
    given: Given, caller: Caller, job_id: JobId, after: After = 0, limit: Limit = PAGE, wait: Wait = 0
) -> Any:
    """Return a job's history, oldest first; waits for an event, up to ``wait`` seconds."""
    job = await run_in_threadpool(visible_job, given.runtime, caller, job_id)

    async def page() -> list[FeedEvent]:
        read = given.runtime.events.page
        return list(await run_in_threadpool(read, after=after, upto=None, job_seq=job.seq, tenant=None, limit=limit))

    found = await _waited_for(given, caller, page, wait, job_seq=job.seq)
    documents = [_line(event) for event in found]
    return {"events": documents, "next": found[-1].seq if found else after}


@routes.get(
    "/events",
    responses={
        200: {
            "model": answers.ClusterEvents,
            "description": "A page.",
            "content": _events_of("event", "lagged", "problem"),
        }
    },
)
async def of_cluster(
    given: Given,
    caller: Caller,
    after: After = 0,
    limit: Limit = PAGE,
    wait: Wait = 0,
    last: Annotated[int, Query(ge=0, le=PAGE, description="In place of `after`: only what is new by so many.")] = 0,
    accept: Annotated[str, Header(max_length=256, include_in_schema=False)] = "",
    last_event_id: LastEventId = None,
) -> Any:
    """Return the history of all jobs, hosts and orders, oldest first; of a tenant's token, that of its jobs.

    To who accepts `text/event-stream` it is a stream: from the `Last-Event-ID` on, without one from now on.
    """
    if EVENT_STREAM in accept:
        given.feed.refuse_if_full()
        place = None if last_event_id is None else _place(last_event_id)[0]
        return _stream(_cluster_frames(given, caller, place))

    if last:
        after = max(after, await run_in_threadpool(given.runtime.events.newest) - last)

    async def page() -> list[FeedEvent]:
        read = given.runtime.events.page
        found = await run_in_threadpool(read, after=after, upto=None, job_seq=None, tenant=caller.tenant, limit=limit)
        return list(found)

    found = await _waited_for(given, caller, page, wait)
    return {"events": [_document(event) for event in found], "next": found[-1].seq if found else after}


@routes.get("/jobs/{job_id}/stream", response_class=StreamingResponse, responses=OF_A_JOB)
async def stream(given: Given, caller: Caller, job_id: JobId, last_event_id: LastEventId = None) -> Any:
    """Follow a job: its history (`state`), what it prints (`output`) and tells (`progress`), until its `end`.

    Goes on behind the `Last-Event-ID`; without one it begins with the submit. After a break a `state` may come twice.
    """
    job = await run_in_threadpool(visible_job, given.runtime, caller, job_id)
    given.feed.refuse_if_full()
    place = (0, Cursor()) if last_event_id is None else _place(last_event_id)
    return _stream(_job_frames(given, caller, job, *place))


async def _waited_for(
    given: Services,
    caller: Principal,
    page: Callable[[], Awaitable[list[FeedEvent]]],
    seconds: float,
    *,
    job_seq: int | None = None,
) -> list[FeedEvent]:
    """Return a page; an empty one again, once there is something or the time has passed."""
    found = await page()
    if found or not seconds or given.stopping.is_set():
        return found
    given.feed.refuse_if_full()
    tenant = caller.tenant if job_seq is None else None
    async with given.feed.following(job_seq=job_seq, tenant=tenant) as (follower, _):
        with given.stays.of(caller, follower.close) as stay:
            found = await page()  # what came before it followed
            if not found:
                await follower.wait(seconds)
                stay.check()
                found = await page()
    return found


def _stream(frames: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(frames, media_type=EVENT_STREAM, headers={"X-Accel-Buffering": "no"})


async def _cluster_frames(given: Services, caller: Principal, after: int | None) -> AsyncIterator[bytes]:
    feed, read, tenant = given.feed, given.runtime.events.page, caller.tenant
    try:
        async with feed.following(tenant=tenant) as (follower, newest), _staying(given, caller, follower) as stay:
            yield b"retry: 2000\n\n"
            after = newest if after is None else after
            while after < newest:
                stay.check()
                found = await run_in_threadpool(read, after=after, upto=newest, job_seq=None, tenant=tenant, limit=PAGE)
                for event in found:
                    yield _frame("event", _document(event), str(min(event.seq, feed.settled)))
                after = found[-1].seq if len(found) == PAGE else newest
            async for items in _items(given, follower):
                yield (
                    b"".join(
                        _framed("event", feed.text_of(item, _document), str(min(item.seq, feed.settled)))
                        for item in items
                    )
                    or HEARTBEAT
                )
            stay.check()
            if follower.lagged:
                yield _frame("lagged", {"detail": "read more quickly, or come back with the last id"})
    except OrchestratorError as error:
        yield _frame("problem", {"code": error.code, "detail": str(error)})


async def _job_frames(given: Services, caller: Principal, job: Job, after: int, cursor: Cursor) -> AsyncIterator[bytes]:
    told = _JobTold(given, job, after, cursor)
    try:
        async with given.feed.following(job_seq=job.seq) as (follower, _), _staying(given, caller, follower) as stay:
            yield b"retry: 2000\n\n"
            async for frame in told.catch_up():
                stay.check()
                yield frame
            follower.cursor = told.cursor
            claims = follower.claims
            present = await given.feed.read(lambda: given.runtime.jobs.get(job.id))
            state = present.state if present else None
            if follower.claims == claims:
                follower.runs = state is JobState.RUNNING
            if state is not None and not ends(state):
                async for items in _items(given, follower):
                    yield b"".join(map(told.frame_of, items)) or HEARTBEAT
                    if any(isinstance(item, FeedEvent) and ends(item.state) for item in items):
                        break
            stay.check()
            if follower.lagged:
                yield _frame("lagged", {"detail": "read more quickly, or come back with the last id"})
                return
            async for frame in told.catch_up():  # all that it printed before its end
                stay.check()
                yield frame
            present = await given.feed.read(lambda: given.runtime.jobs.get(job.id))
            if present is None or ends(present.state):
                yield _frame("end", {"job": job.id, "state": present.state.value if present else None}, told.place)
    except OrchestratorError as error:
        yield _frame("problem", {"code": error.code, "detail": str(error)})


@contextlib.asynccontextmanager
async def _staying(given: Services, caller: Principal, follower: Follower) -> AsyncIterator[Stay]:
    """Give what says whether the caller may stay; the follower is woken when it may not."""
    with given.stays.of(caller, follower.close) as stay:
        yield stay


class _JobTold:
    """What a follower of one job was told so far."""

    def __init__(self, given: Services, job: Job, after: int, cursor: Cursor) -> None:
        self._given, self._job = given, job
        self._after, self.cursor = after, cursor

    @property
    def place(self) -> str:
        """Where to go on."""
        feed = self._given.feed
        return f"{min(self._after, feed.settled)}-{self.cursor.attempt}-{self.cursor.number}"

    async def catch_up(self) -> AsyncIterator[bytes]:
        """Yield events and output that are there and were not told."""
        store, seq = self._given.runtime.events, self._job.seq
        while True:
            events, chunks = await self._given.feed.read(
                lambda: (
                    store.page(after=self._after, upto=None, job_seq=seq, tenant=None, limit=PAGE),
                    store.output({seq: self.cursor}, limit=PAGE),
                )
            )
            for item in (*chunks, *events) if len(chunks) < PAGE else chunks:
                yield self.frame_of(item)
            if len(chunks) < PAGE and len(events) < PAGE:
                return

    def frame_of(self, item: Any) -> bytes:
        """Return what tells of an item, and note that it was told."""
        if isinstance(item, FeedEvent):
            self._after = max(self._after, item.seq)
            return _frame("state", _line(item) | {"state": item.state.value if item.state else None}, self.place)
        if isinstance(item, Chunk):
            self.cursor = max(self.cursor, item.cursor)
            output = {"attempt": item.cursor.attempt, "number": item.cursor.number, "text": item.text}
            return _frame("output", output, self.place)
        return _frame("progress", plain(dict(item)), self.place)


async def _items(given: Services, follower: Follower) -> AsyncIterator[list[Any]]:
    """Yield what came since, nothing where that was long ago, until nothing follows or the stream is old.

    All at once, because what costs is the sending: it is done once a look, however much happens.
    """
    deadline = time.monotonic() + LONGEST_STREAM
    while not (follower.closed or follower.lagged or given.stopping.is_set()) and time.monotonic() < deadline:
        await follower.wait(random.uniform(0.6, 1) * HEARTBEAT_SECONDS)  # noqa: S311 - so that not all come at once
        items = list(follower.items)
        follower.items.clear()
        yield items


def _place(last_event_id: str) -> tuple[int, Cursor]:
    found = _PLACE.fullmatch(last_event_id.strip())
    if found is None or int(found[1]) > MOST_SEQ:
        raise InvalidRequest(f"Last-Event-ID: {last_event_id!r} is not an id of this stream")
    return int(found[1]), Cursor(int(found[2] or 0), int(found[3] or -1))


def _frame(name: str, document: Any, place: str | None = None) -> bytes:
    return _framed(name, json.dumps(document, separators=(",", ":")), place)


def _framed(name: str, text: str, place: str | None) -> bytes:
    return (f"id: {place}\n" if place else "").encode() + f"event: {name}\ndata: {text}\n\n".encode()


def _line(event: FeedEvent) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "at": event.at.isoformat(),
        "kind": event.kind,
        "node": event.node,
        "lease": event.lease_id,
        "data": plain(dict(event.data)),
    }


def _document(event: FeedEvent) -> dict[str, Any]:
    state = event.state.value if event.state else None
    return _line(event) | {"job": event.job_id, "tenant": event.tenant, "state": state}
