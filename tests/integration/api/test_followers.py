"""Requests that wait for output: they cost nobody else anything, and end when there is no reason to wait."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.api.app import create_app
from orchestrator.domain.access import Role
from orchestrator.runtime import Runtime
from orchestrator.services.tokens import TokenService
from tests.integration.api.conftest import AUTHORIZED, LOCAL, OWN
from tests.support.running import Running, register

#: More than the threads that answer requests.
FOLLOWERS = 60


@pytest.fixture
def app(runtime: Runtime) -> FastAPI:
    return create_app(runtime, token=OWN)


def talk(app: FastAPI, conversation: Any) -> Any:
    """Have a conversation of requests at the same time with the app."""

    async def within() -> Any:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url=LOCAL, timeout=30, headers=AUTHORIZED
        ) as client:
            return await conversation(client)

    return asyncio.run(asyncio.wait_for(within(), 60))


async def submit(client: httpx.AsyncClient) -> str:
    return str((await client.post("/jobs/submit", json={"argv": ["true"]})).json()["id"])


def follow(client: httpx.AsyncClient, job: str, wait: float) -> "asyncio.Task[httpx.Response]":
    request: Coroutine[Any, Any, httpx.Response] = client.get(f"/jobs/{job}/logs", params={"wait": wait})
    return asyncio.create_task(request)


def test_followers_keep_nobody_else_waiting(app: FastAPI, runtime: Runtime) -> None:
    """However many wait, others are answered; and all hear of the output."""

    async def conversation(client: httpx.AsyncClient) -> tuple[float, list[httpx.Response]]:
        job = await submit(client)
        followers = [follow(client, job, 20) for _ in range(FOLLOWERS)]
        await asyncio.sleep(0.3)  # they have begun to wait
        begun = time.monotonic()
        for path in ("/healthz", "/jobs", "/nodes", f"/jobs/{job}"):
            assert (await client.get(path)).status_code == 200
        others = time.monotonic() - begun
        assert not any(follower.done() for follower in followers)
        register(runtime, "alpha", 0)
        Running(runtime, job).print("hello\n")
        return others, await asyncio.gather(*followers)

    others, answers = talk(app, conversation)

    assert others < 5  # it was the followers' 20 s when each of them held a thread
    assert [answer.json()["chunks"][0]["text"] for answer in answers] == ["hello\n"] * FOLLOWERS


def test_an_api_that_is_to_end_answers_its_followers(app: FastAPI) -> None:
    """With what there is: they ask again, another process or this one's successor."""

    async def conversation(client: httpx.AsyncClient) -> tuple[float, httpx.Response]:
        follower = follow(client, await submit(client), 20)
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        app.state.services.stopping.set()
        answer = await follower
        return time.monotonic() - begun, answer

    waited, answer = talk(app, conversation)

    assert waited < 5
    assert answer.json() == {"chunks": [], "next": None, "ended": False}


def test_a_revoked_token_ends_a_request_that_waits_for_output(app: FastAPI, runtime: Runtime) -> None:
    """It is told no line that comes afterwards."""
    tokens = TokenService(runtime.access, runtime.clock)
    _token, secret = tokens.create("gone", role=Role.VIEWER, by="test")

    async def conversation(client: httpx.AsyncClient) -> httpx.Response:
        job = await submit(client)
        client.headers["Authorization"] = f"Bearer {secret}"
        assert (await client.get("/whoami")).json()["name"] == "gone"  # from here on it is trusted for a while
        waiting = follow(client, job, 20)
        await asyncio.sleep(0)
        await asyncio.to_thread(tokens.revoke, "gone", by="test")
        return await waiting

    assert talk(app, conversation).status_code == 401
