"""``orch api`` comes and goes; who waits for a job stays."""

import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.job import JobEvent
from orchestrator.ports import JobFilter
from tests.integration.cli.conftest import Answer, Orch, serving
from tests.support.running import Running, register
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import wait_for

REQUESTS = "gpu_orchestrator_api_requests_total"


class Api:
    """An api of its own, with its home's token, whose process the test ends and starts again."""

    def __init__(self, home: Path, redis_url: str) -> None:
        self.port, self.home, self.redis_url = free_port(), home, redis_url
        self.url = f"http://127.0.0.1:{self.port}"
        self.orch = Orch(ORCHESTRATOR_HOME=str(home), ORCHESTRATOR_API_URL=self.url)

    def serving(self, **settings: str) -> Any:
        """Serve for the length of a ``with`` block."""
        return serving(self.home, self.port, ORCHESTRATOR_REDIS_URL=self.redis_url, **settings)

    def send(self, request: bytes) -> socket.socket:
        """Open a connection and send so much; the rest is up to the test."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(request)
        return connection

    def ask(self, path: str) -> Any:
        """Send a request with the token that the process made."""
        token = (self.home / "token").read_text().strip()
        request = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
        return urllib.request.urlopen(request, timeout=30)  # noqa: S310 - http

    def metric(self, name: str) -> float:
        """Return a metric by its name and labels; 0 when it is not there."""
        with self.ask("/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)


@pytest.fixture
def api(tmp_path: Path, embedded_redis_server: RedisServer) -> Api:
    return Api(tmp_path, embedded_redis_server.unix_url)


@pytest.mark.parametrize("verb", ["run", "wait", pytest.param("logs", marks=pytest.mark.matrix)])
def test_who_waits_outlives_a_restart_of_the_api(api: Api, verb: str) -> None:
    """Killed without a word and started again: what was asked is answered all the same."""
    runtime = open_runtime(Settings(home=api.home, redis_url=api.redis_url))
    try:
        with api.serving() as process:
            if verb == "run":
                waiting = api.orch.start("run", "--", "true")
                job = wait_for(lambda: runtime.jobs.list_jobs(JobFilter()), within_seconds=20, describe="a job")[0].id
            else:
                job = api.orch("submit", "--", "true").out.strip()
                waiting = api.orch.start(*{"wait": ["wait", job], "logs": ["logs", "-f", job]}[verb])
            register(runtime, "alpha", 0)
            running = Running(runtime, job)
            running.print("before\n")
            route = "/jobs/{job_id}" if verb == "wait" else "/jobs/{job_id}/logs"
            wait_for(
                lambda: api.metric(f'{REQUESTS}{{method="GET",route="{route}",status="200"}}') >= 2,
                within_seconds=20,
                describe="it has seen the job and the first output",
            )
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        running.print("after\n")
        running.end(JobEvent.FAIL, exit_code=7)
        assert waiting.poll() is None, waiting.communicate()
        with api.serving():
            out, err = waiting.communicate(timeout=40)
    finally:
        runtime.close()

    assert "Traceback" not in err
    assert waiting.returncode == (0 if verb == "logs" else 7), err
    assert out == ("" if verb == "wait" else "before\nafter\n")


def test_whoever_waits_for_output_is_answered_when_the_api_ends(api: Api) -> None:
    """TERM is not held up by long polls, and does not cut them off."""
    pages: list[dict[str, Any]] = []
    with api.serving() as process:
        page = f"/jobs/{api.orch('submit', '--', 'true').out.strip()}/logs?wait=20"

        def follow() -> None:
            with api.ask(page) as answer:
                pages.append(json.load(answer))

        follower = threading.Thread(target=follow)
        follower.start()
        wait_for(
            lambda: api.metric("gpu_orchestrator_api_requests_in_progress") == 2,  # it, and the one that looks
            within_seconds=15,
            describe="the follower waits",
        )
        begun = time.monotonic()
        process.terminate()
        process.wait(15)
        follower.join(15)

    assert time.monotonic() - begun < 4
    assert pages == [{"chunks": [], "next": None, "ended": False}]


def test_the_command_line_of_a_home_finds_the_token_that_its_api_made(api: Api) -> None:
    """It is told on stderr where it lies; of several processes of the home all take it, and nobody else is let in."""
    token_file, other_port = api.home / "token", free_port()
    bare = Orch(ORCHESTRATOR_HOME=str(api.home))
    with api.serving():
        assert f"the API's token is in {token_file}" in (api.home / "api.log").read_text()
        assert token_file.stat().st_mode & 0o777 == 0o600
        assert bare("ps").code == 0, "neither a URL nor a token is given"
        assert Orch(ORCHESTRATOR_HOME=str(api.home / "elsewhere"), ORCHESTRATOR_API_URL=api.url)("ps").code == 2
        made = token_file.read_text()
        with serving(api.home, other_port, ORCHESTRATOR_REDIS_URL=api.redis_url):
            assert token_file.read_text() == made
            assert bare("ps").code == 0, "of the process that started last"
        assert api.ask("/whoami").status == 200
    with pytest.raises(urllib.error.HTTPError, match="401"), api.serving():
        urllib.request.urlopen(f"{api.url}/jobs", timeout=10)  # noqa: S310 - http


def test_a_port_that_is_taken_is_told(api: Api) -> None:
    with api.serving():
        answer: Answer = api.orch("api", "--port", str(api.port), ORCHESTRATOR_REDIS_URL=api.redis_url)
        other = api.home / "other"
        other.mkdir()
        Orch(ORCHESTRATOR_HOME=str(other))("api", "--port", str(api.port), ORCHESTRATOR_REDIS_URL=api.redis_url)

    assert answer.code != 0
    assert not (other / "client.toml").exists(), "its token would be shown to whoever has the port"
    assert "address already in use" in answer.err


#: A job, of which the body is only begun.
HALF = (
    b"POST /jobs/submit HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b'Content-Length: 18\r\n\r\n{"argv": '
)
IN_PROGRESS = "gpu_orchestrator_api_requests_in_progress"


def all_of(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes."""
    answered = b""
    while chunk := connection.recv(65536):
        answered += chunk
    return answered


def test_who_sends_half_a_body_and_falls_silent_is_told_and_hung_up_on(api: Api) -> None:
    """Within api_body_seconds: whoever holds connections open like this holds none for longer."""
    with api.serving(ORCHESTRATOR_API_BODY_SECONDS="1"), api.send(HALF) as slow:
        answered = all_of(slow)
        assert api.orch("ps", "--json").document == []

    head, _, body = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["type"] == "urn:gpu-orchestrator:problem:too-slow"


@pytest.mark.parametrize("rest", [b"", b'["true'], ids=["after the headers", "in the last word"])
def test_who_goes_away_within_a_body_leaves_nothing(api: Api, rest: bytes) -> None:
    """No job, no request that counts as in progress, and no thread or slot that somebody else would miss."""
    with api.serving():
        for _ in range(20):
            api.send(HALF + rest).close()
        wait_for(
            lambda: api.metric(f'{REQUESTS}{{method="POST",route="none",status="499"}}') == 20,
            within_seconds=20,
            describe="all have been noticed",
        )
        assert api.metric(IN_PROGRESS) == 1  # the one that looks
        assert api.orch("ps", "--json").document == []
        assert api.orch("submit", "--", "true").code == 0


def test_who_ends_a_body_early_is_not_taken_at_its_word(api: Api) -> None:
    """It says that nothing more comes, and waits for an answer: what came is no job."""
    with api.serving(), api.send(HALF + b'["true"]') as early:
        early.shutdown(socket.SHUT_WR)
        answered = all_of(early)
        assert api.orch("ps", "--json").document == []

    assert b" 201 " not in answered[:20]
