"""The clients ask for nothing but what the API's description has, and for all of it."""

import asyncio
import inspect
import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator import client as module
from orchestrator import client_calls
from orchestrator.client import AsyncClient, Client, RemoteError
from orchestrator.client_calls import Calls
from orchestrator.errors import ApiUnavailable, InvalidRequest, UnknownJob

URL = "http://127.0.0.1:9"
OPERATIONS = {
    (method.upper(), path)
    for path, methods in json.loads((Path(__file__).parents[2] / "docs/openapi.json").read_text())["paths"].items()
    for method in methods
}
#: For programs of other kinds: probes, Prometheus, generators, people who look around.
NOT_FOR_CLIENTS = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
}
#: Each client has its own method for this one, as for the stream of ``GET /events``: ``watch``.
STREAM = {("GET", "/jobs/{job_id}/stream")}
#: The clients have one method for these, which sends ``POST /jobs/orders``; and one that sends ``PATCH /policy``.
FOR_ONE = {("POST", f"/jobs/{{job_id}}/{order}") for order in ("priority", "hold", "release", "retry")}
FOR_ONE |= {("POST", "/policy")}
JOB = {"id": "x-1"}
METHODS = [name for name, _ in inspect.getmembers(Calls, inspect.isfunction) if not name.startswith("_")]

Handler = Callable[[httpx.Request], httpx.Response]


def connect(monkeypatch: pytest.MonkeyPatch, handler: Handler, **options: Any) -> tuple[Client, AsyncClient]:
    """Return both clients, connected to a handler."""
    transport = httpx.MockTransport(handler)
    with monkeypatch.context() as patched:
        for name in ("Client", "AsyncClient"):
            patched.setattr(httpx, name, partial(getattr(httpx, name), transport=transport))
        return Client(URL, **options), AsyncClient(URL, **options)


def arguments(method: Callable[..., Any], drain: bool) -> dict[str, Any]:
    """Return an argument of the right kind for each parameter that needs one."""
    kinds = {"str": "x-1", "Mapping[str, Any]": {}, "Sequence[Mapping[str, Any]]": [], "bool": drain}
    found = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_KEYWORD,) and name != "self":
            annotation = parameter.annotation
            known = kinds.get(annotation if isinstance(annotation, str) else getattr(annotation, "__name__", ""))
            found[name] = known if known is not None else {"jobs": []}.get(name, {})
    return found


def test_every_operation_has_a_method_and_every_method_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each method is called, on both clients; what they send is looked up in the description."""
    sent: list[tuple[str, str]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.url.path))
        every = {name: [] for name in re.findall(r'of="(\w+)"', inspect.getsource(client_calls))}
        many = request.url.path == "/jobs/submit" and request.content == b"[]"
        return httpx.Response(200, json=[] if many else every)

    client, async_client = connect(monkeypatch, handler)
    calls = [(name, arguments(getattr(Calls, name), drain)) for name in METHODS for drain in (True, False)]
    calls += [("order_gpu", {"uuid": "x-1", "action": action}) for action in ("quarantine", "release", "reset")]
    orders = ("scale", "preload", "swap", "sleep", "wake", "drain", "stop")
    calls += [("order_pool", {"name": "x-1", "order": order}) for order in orders]
    words = {"order_gpu": "action", "order_pool": "order"}
    calls = [(name, given) for name, given in calls if given.get(words.get(name, "")) != "x-1"]
    for name, given in calls:
        getattr(client, name)(**given)
    once, sent[:] = list(sent), []

    async def call_all() -> None:
        for name, given in calls:
            await getattr(async_client, name)(**given)

    asyncio.run(call_all())
    assert sent == once
    told = {(method, path) for method, path in OPERATIONS if any(_is(path, other) for m, other in once if m == method)}
    assert told == OPERATIONS - NOT_FOR_CLIENTS - FOR_ONE - STREAM
    assert [one for one in once if not any(one[0] == method and _is(path, one[1]) for method, path in OPERATIONS)] == []


def _is(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) is not None


async def _call(client: AsyncClient, job_id: str) -> Any:
    return await client.job(job_id)


def both(client: Client, async_client: AsyncClient) -> list[Callable[[], Any]]:
    """Return how to ask each for a job."""
    return [lambda: client.job("x-1"), lambda: asyncio.run(_call(async_client, "x-1"))]


def test_a_problem_is_raised_as_the_error_that_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"type": "urn:gpu-orchestrator:problem:unknown-job", "status": 404, "detail": "unknown job 'x-1'"}
    for ask in both(*connect(monkeypatch, lambda _: httpx.Response(404, json=problem))):
        with pytest.raises(RemoteError, match="unknown job 'x-1'") as caught:
            ask()
        assert caught.value.kind is UnknownJob


def test_what_is_no_such_api_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for body in ("<html>", "[1]"):
        for ask in both(*connect(monkeypatch, lambda _, body=body: httpx.Response(200, text=body))):
            with pytest.raises(ApiUnavailable, match="does not answer as gpu-orchestrator's API does"):
                ask()


def test_patience_repeats_what_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read is answered once the API is back; a submit is sent once."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    answers: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        answers.append(request.method)
        if len(answers) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(503, json={"status": 503}) if len(answers) == 2 else httpx.Response(200, json=JOB)

    for ask in both(*connect(monkeypatch, handler, patience_seconds=30.0)):
        answers.clear()
        assert ask() == JOB
        assert answers == ["GET"] * 3
    client, _ = connect(monkeypatch, handler, patience_seconds=30.0)
    answers.clear()
    with pytest.raises(ApiUnavailable):
        client.submit({})
    assert answers == ["POST"]


def test_what_cannot_be_sent_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = connect(monkeypatch, lambda _: httpx.Response(200, json={}))

    with pytest.raises(InvalidRequest, match="not a job id"):
        client.job("../nodes")
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        client.submit({"argv": [b"\xff"]})
    with pytest.raises(InvalidRequest, match="one line"):
        Client(URL, "a\nb")


def test_many_requests_of_an_asynchronous_client_are_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is answered before all have been sent."""
    arrived = 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal arrived
        arrived += 1
        async with asyncio.timeout(10):
            while arrived < 5:
                await asyncio.sleep(0)
        return httpx.Response(200, json={"id": request.url.path})

    _, client = connect(monkeypatch, handler)  # type: ignore[arg-type]

    async def ask() -> list[Awaitable[Any]]:
        async with client:
            return await asyncio.gather(*(client.job(f"x-{number}") for number in range(5)))

    assert len(asyncio.run(ask())) == 5


def test_a_version_is_sent_with_what_may_be_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str | None]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append((request.url.path, request.headers.get("If-Match")))
        return httpx.Response(200, json={})

    client, _ = connect(monkeypatch, handler)
    client.set_queue("gpu", {}, version=3)
    client.set_policy({}, version=0)
    client.order_pool("chat", "scale", {"min": 1}, version=7)
    client.set_policy({})

    assert sent == [("/queues/gpu", '"3"'), ("/policy", '"0"'), ("/pools/chat/scale", '"7"'), ("/policy", None)]
    with pytest.raises(InvalidRequest, match="takes no version"):
        client.order_pool("chat", "sleep", version=7)


def stream(*events: tuple[str, str, str]) -> httpx.Response:
    """Return an answer with these events: name, id, data."""
    frames = "".join(f"id: {id}\nevent: {name}\ndata: {data}\n\n: still here\n\n" for name, id, data in events)
    return httpx.Response(200, text="retry: 2000\n\n" + frames, headers={"Content-Type": "text/event-stream"})


def watched(client: Client, async_client: AsyncClient) -> list[Callable[[], list[tuple[str, Any]]]]:
    """Return how to follow a job to its end with each."""

    async def all_of() -> list[tuple[str, Any]]:
        return [(one.event, one.data) async for one in async_client.watch("x-1")]

    return [lambda: [(one.event, one.data) for one in client.watch("x-1")], lambda: asyncio.run(all_of())]


def test_a_stream_that_breaks_is_gone_on_with_until_the_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last id on; what is said of the stream itself is not told."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    places: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.url.path, request.headers["Accept"]) == ("/jobs/x-1/stream", "text/event-stream")
        places.append(request.headers.get("Last-Event-ID"))
        return (
            stream(("state", "1-0-0", '{"seq":1}'), ("output", "2-1-0", '{"text":"a: b"}'), ("lagged", "2-1-0", "{}")),
            httpx.Response(503, json={"type": "urn:gpu-orchestrator:problem:store-unavailable", "status": 503}),
            stream(("end", "3-1-0", '{"state":"succeeded"}')),
        )[(len(places) - 1) % 3]

    for follow in watched(*connect(monkeypatch, handler, patience_seconds=30.0)):
        assert follow() == [("state", {"seq": 1}), ("output", {"text": "a: b"}), ("end", {"state": "succeeded"})]
        assert places == [None, "2-1-0", "2-1-0"]
        places.clear()


def test_a_stream_that_cannot_be_had_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"type": "urn:gpu-orchestrator:problem:unknown-job", "status": 404, "detail": "unknown job 'x-1'"}
    for follow in watched(*connect(monkeypatch, lambda _: httpx.Response(404, json=problem), patience_seconds=30.0)):
        with pytest.raises(RemoteError, match="unknown job 'x-1'"):
            follow()

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    for follow in watched(*connect(monkeypatch, refuse)):
        with pytest.raises(ApiUnavailable):
            follow()


def test_a_follower_asks_for_the_last_lines_until_there_is_a_place_to_go_on_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then for what follows: asking for the last lines again would repeat them."""
    asked: list[dict[str, str]] = []
    pages = [
        {"chunks": [], "next": None, "ended": False},
        {"chunks": [{"attempt": 2, "number": 4, "text": "last\n"}], "next": "2:4", "ended": False},
        {"chunks": [{"attempt": 2, "number": 5, "text": "more\n"}], "next": "2:5", "ended": True},
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append({name: value for name, value in request.url.params.items() if name != "wait"})
        return httpx.Response(200, json=pages[(len(asked) - 1) % len(pages)])

    client, async_client = connect(monkeypatch, handler)

    async def follow() -> list[str]:
        return [text async for text in async_client.follow("x-1", tail=1, attempt=2)]

    expected = [{"tail": "1", "attempt": "2"}, {"tail": "1", "attempt": "2"}, {"after": "2:4", "attempt": "2"}]
    for followed in (lambda: list(client.follow("x-1", tail=1, attempt=2)), lambda: asyncio.run(follow())):
        assert followed() == ["last\n", "more\n"]
        assert asked == expected
        asked.clear()
