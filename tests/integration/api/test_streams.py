"""Streams of events: what happens is told, in order, to all who follow, from one reader; and where they go on."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.api import stays
from orchestrator.api.app import create_app
from orchestrator.api.feed import MOST_BUFFERED, Follower, Positions
from orchestrator.domain.access import Role
from orchestrator.runtime import Runtime
from orchestrator.services.tokens import TokenService
from tests.integration.api.conftest import AUTHORIZED, LOCAL, OWN
from tests.support.running import Running, register

Frame = dict[str, Any]


class Stream:
    """An ASGI request whose answer is read as it comes; httpx's own transport gives it only when it is whole."""

    def __init__(self, app: FastAPI, path: str, **headers: str) -> None:
        raw = {"host": "127.0.0.1", "accept": "text/event-stream", "authorization": AUTHORIZED["Authorization"]}
        raw |= {name.replace("_", "-"): value for name, value in headers.items()}
        self._scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": b"", "scheme": "http", "server": ("127.0.0.1", 8470), "client": ("127.0.0.1", 1),
            "headers": [(k.encode(), v.encode()) for k, v in raw.items()], "state": {}, "asgi": {"spec_version": "2.3"},
        }  # fmt: skip
        self._app = app
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self.status: int | None = None
        self._text = ""

    async def __aenter__(self) -> "Stream":
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._gone.set()
        await asyncio.wait_for(self._task, 20)

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield events as they come, until the answer ends."""
        while True:
            part = await asyncio.wait_for(self._parts.get(), 20)
            if part is None:
                return
            self._text += part.decode()
            while "\n\n" in self._text:
                text, _, self._text = self._text.partition("\n\n")
                fields = dict(line.split(": ", 1) for line in text.splitlines())
                if "data" in fields:
                    yield {"id": fields.get("id"), "event": fields["event"], **json.loads(fields["data"])}

    async def until(self, kind: str) -> list[Frame]:
        """Return what comes up to an event of a kind."""
        found = []
        async for frame in self.frames():
            found.append(frame)
            if kind in (frame["event"], frame.get("kind")):
                break
        return found

    async def _serve(self) -> None:
        async def receive() -> dict[str, Any]:
            await self._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            elif message.get("body"):
                self._parts.put_nowait(message["body"])

        await self._app(self._scope, receive, send)
        self._parts.put_nowait(None)


@pytest.fixture
def app(runtime: Runtime) -> FastAPI:
    register(runtime, "alpha", 2)
    return create_app(runtime, token=OWN)


@pytest.fixture
def run() -> Iterator[Any]:
    with asyncio.Runner() as runner:
        yield lambda conversation: runner.run(asyncio.wait_for(conversation, 60))


def client_of(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    """Return a client, with every right unless the headers say whose it is."""
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url=LOCAL, headers=AUTHORIZED | headers)


async def submit(app: FastAPI, **headers: str) -> str:
    async with client_of(app, **headers) as client:
        answer = await client.post("/jobs/submit", json={"argv": ["true"]})
        return str(answer.json()["id"])


async def get(app: FastAPI, path: str) -> Any:
    async with client_of(app) as client:
        return (await client.get(path)).json()


def test_a_job_is_followed_to_its_end_and_taken_up_again(app: FastAPI, runtime: Runtime, run: Any) -> None:
    async def conversation() -> tuple[list[Frame], list[Frame]]:
        job = await submit(app)
        async with Stream(app, f"/jobs/{job}/stream") as stream:
            first = await stream.until("admit")
            running = Running(runtime, job)
            running.print("one\n")
            first += await stream.until("output")
            running.print("two\n")
            running.end()
            first += [frame async for frame in stream.frames()]
        seen = next(frame["id"] for frame in first if frame.get("text") == "one\n")
        async with Stream(app, f"/jobs/{job}/stream", last_event_id=seen) as stream:
            again = [frame async for frame in stream.frames()]
        return first, again

    first, again = run(conversation())

    assert [frame["kind"] for frame in first if frame["event"] == "state"] == ["submit", "admit", "claim", "succeed"]
    assert [frame["text"] for frame in first if frame["event"] == "output"] == ["one\n", "two\n"]
    assert (first[-1]["event"], first[-1]["state"]) == ("end", "succeeded")
    assert [frame["text"] for frame in again if frame["event"] == "output"] == ["two\n"]
    assert [frame["kind"] for frame in again if frame["event"] == "state"][-1] == "succeed"
    assert again[-1]["event"] == "end"


def test_all_followers_are_told_by_one_reader(app: FastAPI, run: Any) -> None:
    feed = app.state.services.feed

    async def conversation() -> tuple[list[list[Frame]], int]:
        streams = [Stream(app, "/events") for _ in range(50)]
        async with contextlib.AsyncExitStack() as stack:
            for stream in streams:
                await stack.enter_async_context(stream)
            while feed.followers < 50:
                await asyncio.sleep(0.01)
            before = feed.reads
            await submit(app)
            return [await stream.until("submit") for stream in streams], feed.reads - before

    found, reads = run(conversation())

    assert {frames[-1]["kind"] for frames in found} == {"submit"}
    assert reads < 50
    assert feed.followers == 0


def test_a_follower_goes_on_where_it_was_and_a_tenant_sees_its_own(app: FastAPI, runtime: Runtime, run: Any) -> None:
    tokens = TokenService(runtime.access, runtime.clock)
    secret = tokens.create("blue", role=Role.SUBMITTER, tenant="blue", by="test")[1]
    blue = {"Authorization": f"Bearer {secret}"}

    async def conversation() -> tuple[str, list[Frame], list[Frame]]:
        await submit(app)
        mine = await submit(app, **blue)
        async with Stream(app, "/events", last_event_id="0", authorization=blue["Authorization"]) as stream:
            own = await stream.until("admit")
        async with Stream(app, "/events", last_event_id="0") as stream:
            seen = await stream.until("admit")
        page = await get(app, f"/events?after={seen[-1]['seq']}&limit=1")
        assert page["events"][0]["seq"] == seen[-1]["seq"] + 1 == page["next"]
        return mine, own, seen

    mine, own, seen = run(conversation())

    assert {frame["job"] for frame in own} == {mine}
    assert "default" in {frame["tenant"] for frame in seen}


class Looks:
    """The access store, and which tokens were looked at together."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.ids: list[frozenset[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def live_ids(self, ids: Collection[str]) -> Any:
        """Look."""
        self.ids.append(frozenset(ids))
        return self._store.live_ids(ids)


@pytest.mark.parametrize("path", ["/events", "/jobs/{job}/stream"])
def test_a_revoked_token_ends_the_streams_that_it_has_open(runtime: Runtime, run: Any, path: str) -> None:
    """Another process revokes it; all its streams end, others' go on, and one look serves all of them."""
    register(runtime, "alpha", 2)
    looks = Looks(runtime.access)
    app = create_app(dataclasses.replace(runtime, access=looks), token=OWN)
    tokens = TokenService(runtime.access, runtime.clock)  # of another process
    issued = {name: tokens.create(name, role=Role.VIEWER, by="test") for name in ("gone", "stays")}
    headers = {name: {"authorization": f"Bearer {secret}"} for name, (_token, secret) in issued.items()}

    async def conversation() -> tuple[list[list[Frame]], list[Frame]]:
        where = path.replace("{job}", await submit(app))
        ending = [Stream(app, where, **headers["gone"]) for _ in range(10)]
        async with contextlib.AsyncExitStack() as stack:
            for stream in ending:
                await stack.enter_async_context(stream)
            other = await stack.enter_async_context(Stream(app, where, **headers["stays"]))
            while app.state.services.feed.followers < 11:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(tokens.revoke, "gone", by="test")
            ended = [[frame async for frame in stream.frames()] for stream in ending]
            job = await submit(app) if path == "/events" else where.split("/")[2]
            async with client_of(app) as client:
                await client.post(f"/jobs/{job}/cancel")
            return ended, await other.until("cancel")

    ended, told = run(conversation())

    assert [frames[-1]["event"] for frames in ended] == ["problem"] * 10
    assert {frames[-1]["code"] for frames in ended} == {"unauthenticated"}
    assert told[-1]["kind"] == "cancel"
    assert looks.ids[0] == {token.id for token, _secret in issued.values()}
    assert set(looks.ids) <= {looks.ids[0], frozenset({issued["stays"][0].id})}, "one look is about all who stay"


@pytest.mark.parametrize("path", ["/events?after={last}&wait=20", "/jobs/{job}/events?after={last}&wait=20"])
def test_a_revoked_token_ends_a_page_that_waits(app: FastAPI, runtime: Runtime, run: Any, path: str) -> None:
    tokens = TokenService(runtime.access, runtime.clock)
    _token, secret = tokens.create("gone", role=Role.VIEWER, by="test")

    async def conversation() -> httpx.Response:
        job = await submit(app)
        last = (await get(app, "/events"))["next"]
        async with client_of(app, Authorization=f"Bearer {secret}") as client:
            waiting = asyncio.create_task(client.get(path.format(job=job, last=last)))
            while not app.state.services.feed.followers:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(tokens.revoke, "gone", by="test")
            return await waiting

    answer = run(conversation())

    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (401, "unauthenticated")


def test_a_request_that_is_answered_at_once_is_not_looked_at_again(
    runtime: Runtime, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most do not stay, and cost no query more."""
    monkeypatch.setattr(stays, "LOOK_SECONDS", 0.05)
    looks = Looks(runtime.access)
    app = create_app(dataclasses.replace(runtime, access=looks), token=OWN)
    _token, secret = TokenService(runtime.access, runtime.clock).create("any", role=Role.VIEWER, by="test")

    async def conversation() -> None:
        job = await submit(app)
        async with client_of(app, Authorization=f"Bearer {secret}") as client:
            assert (await client.get(f"/jobs/{job}/logs")).status_code == 200
        looker = app.state.services.stays._looker
        assert looker is not None
        await asyncio.wait_for(looker, 20)

    run(conversation())

    assert looks.ids == []


def test_a_defect_of_the_looking_ends_what_is_open(
    runtime: Runtime, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody stays whose token is not looked at."""

    class Broken(Looks):
        def live_ids(self, ids: Collection[str]) -> Any:
            raise RuntimeError("a defect")

    app = create_app(dataclasses.replace(runtime, access=Broken(runtime.access)), token=OWN)
    _token, secret = TokenService(runtime.access, runtime.clock).create("any", role=Role.VIEWER, by="test")

    async def conversation() -> list[Frame]:
        async with Stream(app, "/events", authorization=f"Bearer {secret}") as stream:
            return [frame async for frame in stream.frames()]

    assert run(conversation())[-1]["code"] == "unauthenticated"
    assert "could not be looked at" in caplog.text


def test_a_page_of_a_job_waits_for_an_event(app: FastAPI, run: Any) -> None:
    async def conversation() -> list[Any]:
        job = await submit(app)
        page = await get(app, f"/jobs/{job}/events")
        waiting = asyncio.create_task(get(app, f"/jobs/{job}/events?after={page['next']}&wait=20"))
        await asyncio.sleep(0)
        async with client_of(app) as client:
            await client.post(f"/jobs/{job}/cancel")
        return [event["kind"] for event in (await waiting)["events"]]

    assert run(conversation())[:1] == ["cancel"]


def test_a_wrong_place_is_refused(app: FastAPI, run: Any) -> None:
    async def conversation() -> int | None:
        async with Stream(app, "/events", last_event_id="yesterday") as stream:
            assert [frame async for frame in stream.frames()] == []
            return stream.status

    assert run(conversation()) == 422


def test_who_reads_too_slowly_is_sent_away_and_holds_no_memory() -> None:
    follower = Follower(None, None, None)
    for number in range(MOST_BUFFERED + 1):
        follower.push({"number": number})

    assert follower.lagged
    assert not follower.items


def test_an_event_that_is_committed_late_is_looked_for_and_nobody_is_sent_past_it() -> None:
    positions = Positions(10)
    positions.saw([11, 13])
    assert (positions.newest, positions.gaps, positions.settled) == (13, [12], 11)
    positions.saw([12, 14])
    assert (positions.newest, positions.gaps, positions.settled) == (14, [], 14)
    positions.saw([16])
    for _ in range(50):
        positions.saw([])
    assert (positions.gaps, positions.settled) == ([], 16), "of a transaction that was given up"
