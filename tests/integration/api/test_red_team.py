"""What attackers send: each is refused with the status that it should have, is no defect, and leaves nothing behind."""

import gzip
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
import uvicorn
from fastapi.testclient import TestClient

from orchestrator.api.app import create_app
from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.access import ID_BYTES, SECRET_BYTES, make_secret
from orchestrator.runtime import Runtime
from tests.integration.api.conftest import LOCAL
from tests.support.running import register
from tests.support.waiting import wait_for

JSON: Final = {"Content-Type": "application/json"}
SUBMIT: Final = "/jobs/submit"
UP: Final = "..%2f..%2f..%2fetc%2fpasswd"
BIDI: Final = "\u202egnp.exe"
SSRF: Final = "http://169.254.169.254/latest/meta-data/"
SQL: Final = "x'; DROP TABLE orchestrator_jobs; --"
FORGED: Final = make_secret(bytes(ID_BYTES + SECRET_BYTES))[1]
LUA: Final = "'] redis.call('FLUSHALL') --["


@dataclass(frozen=True)
class Shot:
    """One request, and the status that refuses it."""

    name: str
    status: int
    path: str = SUBMIT
    body: Any = None  # sent as JSON
    raw: bytes | None = None  # sent as it is
    method: str = "POST"
    headers: dict[str, str] | None = None


def job(called: str, /, **fields: Any) -> Shot:
    """Return a command that is to be refused for what it is."""
    return Shot(called, 422, body={"argv": ["true"]} | fields)


def text(name: str, content: str) -> Shot:
    """Return a body that is to be refused for how it is written."""
    return Shot(name, 422, raw=content.encode(), headers=JSON)


SHOTS: Final = (
    *(Shot(f"traversal in {path}", 404, path.replace("{}", UP), method=method) for method, path in (
        ("GET", "/jobs/{}"), ("GET", "/jobs/{}/logs"), ("GET", "/jobs/{}/why"), ("GET", "/jobs/{}/events"),
        ("GET", "/jobs/{}/stream"), ("POST", "/jobs/{}/cancel"), ("POST", "/jobs/{}/hold"), ("POST", "/jobs/{}/retry"),
        ("GET", "/dlq/{}"), ("DELETE", "/dlq/{}"), ("GET", "/queues/{}"), ("POST", "/queues/{}/pause"),
        ("POST", "/nodes/{}/drain"), ("POST", "/gpus/{}/quarantine"), ("POST", "/leases/{}/release"),
        ("GET", "/pools/{}"), ("DELETE", "/pools/{}"), ("POST", "/control/sweeps/{}"), ("DELETE", "/tokens/{}"),
    )),
    Shot("dots in place of a name", 404, "/queues/%2e%2e/pause"),
    Shot("NUL in a path", 404, "/queues/gpu%00/pause"),
    Shot("a name longer than any", 422, "/queues/" + "q" * 5000 + "/pause"),
    job("a working directory that climbs", cwd="../../etc"),
    job("a working directory that is a URL", cwd=SSRF),
    job("NUL in a working directory", cwd="/tmp\0/etc"),
    job("NUL in an argument", argv=["true", "a\0b"]),
    job("NUL in a variable", env={"A": "a\0b"}),
    job("LD_PRELOAD", env={"LD_PRELOAD": "/tmp/evil.so"}),
    job("LD_LIBRARY_PATH", env={"LD_LIBRARY_PATH": "/tmp"}),
    job("somebody else's GPUs", env={"CUDA_VISIBLE_DEVICES": "0,1,2,3"}),
    job("a setting of ours", env={"ORCHESTRATOR_FENCING_TOKEN": "1"}),
    job("a variable's name with an equals sign", env={"A=B": "c"}),
    job("a variable without a name", env={"": "c"}),
    job("a secret's name that climbs", secrets=["../../token"]),
    job("ESC in a name", name="\x1b]0;owned\x07"),
    job("text that runs backwards in a name", name=BIDI),
    job("a line break in a name", name="a\nlevel=ERROR forged"),
    job("SQL for a queue", queue=SQL),
    job("SQL for a tenant", tenant=SQL),
    job("Lua for a queue", queue=LUA),
    job("a URL for a queue", queue=SSRF),
    job("braces for a queue", queue="{other-slot}"),
    job("another stream for a queue", queue="gpu@node\r\nXADD"),
    job("SQL for a label", constraints={"zone": SQL}),
    job("no arguments at all", argv=[]),
    job("more arguments than can be", argv=["x"] * 10_001),
    job("a huge number of GPUs", gpus=10**30),
    job("fewer than no GPUs", gpus=-1),
    job("a truth value for a number", gpus=True),
    job("more than all memory", gpu_memory=f"{10**40}GiB"),
    job("memory below nothing", gpu_memory="-1GiB"),
    job("a time limit in the past", time_limit=-1),
    job("a priority above all", priority=10),
    job("more attempts than ever", max_attempts=10**9),
    job("a start before there was time", run_at="0000-00-00T00:00:00Z"),
    job("a start without a time zone", run_at="2030-01-01T00:00:00"),
    job("a start in seconds", run_at=1e18),
    job("a field of another service", callback=SSRF),
    job("an object for a string", name={"$ne": ""}),
    job("both kinds of job", task="examples.add"),
    Shot("a task that is a path", 422, body={"task": "../../os.system"} | {"args": ["a b"], "model": SQL}),
    Shot("an import for a task", 422, body={"task": "os system"}),
    Shot("ten thousand and one jobs", 422, body=[{}] * 10_001),
    Shot("no jobs", 422, body=[]),
    Shot("one bad job among good ones", 422, body=[{"argv": ["true"]}, {"argv": ["a\0"]}]),
    text("a lone surrogate in a name", r'{"argv": ["true"], "name": "\ud800"}'),
    text("a lone surrogate in an argument", r'{"argv": ["true", "\udc00"]}'),
    text("a lone surrogate in a variable", r'{"argv": ["true"], "env": {"A": "\ud800"}}'),
    text("a lone surrogate in a key", r'{"argv": ["true"], "key": "\ud800"}'),
    text("NaN", '{"argv": ["true"], "time_limit": NaN}'),
    text("NaN in an argument of a task", '{"task": "examples.add", "args": [NaN]}'),
    text("infinity", '{"argv": ["true"], "grace": Infinity}'),
    text("a number beyond infinity", '{"argv": ["true"], "time_limit": 1e999}'),
    Shot("a whole number of 5000 digits", 400, raw=b'{"argv": ["true"], "gpus": ' + b"9" * 5000 + b"}", headers=JSON),
    text("a name twice", '{"argv": ["true"], "argv": ["sh"]}'),
    text("a name twice, written differently", r'{"argv": ["true"], "\u0061rgv": ["sh"]}'),
    text("a name twice, further in", '{"argv": ["true"], "env": {"A": "1", "A": "2"}}'),
    text("deep nesting", '{"task": "examples.add", "args": ' + "[" * 5000 + "]" * 5000 + "}"),
    text("deep nesting without an end", "[" * 60_000),
    text("half a document", '{"argv": ["true"'),
    text("nothing", ""),
    text("two documents", '{"argv": ["true"]}{"argv": ["true"]}'),
    text("a comment", '{"argv": ["true"]} // ok'),
    Shot("UTF-16 without a mark", 422, raw='{"argv": ["true"]}'.encode("utf-16-le"), headers=JSON),
    Shot("UTF-32", 422, raw='{"argv": ["true"]}'.encode("utf-32"), headers=JSON),
    text("XML", "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>"),
    Shot("bytes that are no text", 422, raw=b'{"argv": ["\xff\xfe"]}', headers=JSON),
    Shot("UTF-16", 422, raw='{"argv": ["true"]}'.encode("utf-16"), headers=JSON),
    Shot("a form", 422, raw=b"argv=true", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    Shot("a form that a page can send", 422, raw=b'{"argv": ["true"]}', headers={"Content-Type": "text/plain"}),
    Shot("a file", 422, raw=b"--x\r\n\r\n--x--", headers={"Content-Type": "multipart/form-data; boundary=x"}),
    Shot("more than is read", 413, raw=b'{"argv": ["' + b"x" * 300_000 + b'"]}', headers=JSON),
    Shot("a payload beyond its bound", 413, body={"argv": ["x" * 4000] * 20}),
    Shot("a bomb of zeros", 422, raw=gzip.compress(b'{"argv": ["' + b"0" * 10_000_000 + b'"]}'),
         headers=JSON | {"Content-Encoding": "gzip"}),
    Shot("a key longer than any", 422, body={"argv": ["true"]}, headers={"Idempotency-Key": "k" * 129}),
    Shot("a trace longer than any", 422, body={"argv": ["true"]}, headers={"traceparent": "0" * 129}),
    Shot("another method by a header", 404, method="GET", headers={"X-HTTP-Method-Override": "POST"}),
    Shot("another site's name", 403, body={"argv": ["true"]}, headers={"Host": "rebound.example"}),
    Shot("another site's page", 403, body={"argv": ["true"]}, headers={"Origin": "https://evil.example"}),
    Shot("a forged token", 401, body={"argv": ["true"]},
         headers={"Authorization": f"Bearer {FORGED}"}),
    Shot("a pool by SQL", 422, "/pools", body={"name": SQL}),
    Shot("a pool whose loader is a URL", 422, "/pools", body={"name": "p", "task": f"{SSRF} x"}),
    Shot("a pool of more runners than can be", 422, "/pools", body={"name": "p", "min": 10**9}),
    Shot("a lease for ever", 422, "/leases", body={"ttl_seconds": 1e300}),
    Shot("a lease that waits for ever", 422, "/leases", body={"wait_seconds": 1e9}),
    Shot("a lease for another tenant by SQL", 422, "/leases", body={"tenant": SQL}),
    Shot("a token by SQL", 422, "/tokens", body={"name": SQL, "role": "admin"}),
    Shot("a token of a role that is none", 422, "/tokens", body={"name": "x", "role": "root"}),
    Shot("a policy of more memory than there is", 422, "/policy", body={"max_gpu_memory_fraction": 1.5}),
    Shot("a version that is SQL", 422, "/policy", body={}, headers={"If-Match": SQL}),
    Shot("a cursor beyond the database", 422, f"/jobs?cursor={10**20}", method="GET"),
    Shot("a page of everything", 422, "/jobs?limit=1000000000", method="GET"),
    Shot("a filter that is SQL", 422, "/jobs?state=" + "x'%20OR%201=1", method="GET"),
    Shot("a wait for ever", 422, "/events?wait=1e9", method="GET"),
)  # fmt: skip


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Any, embedded_redis_server: Any
) -> Iterator[tuple[TestClient, Runtime]]:
    """An app without a token, on a database of its own, with a host, and nothing else."""
    home = tmp_path_factory.mktemp("red")
    shutil.copy(empty_database, home / "red.db")
    url = f"sqlite:///{home / 'red.db'}"
    given = Settings(home=home, database_url=url, redis_url=embedded_redis_server.unix_url, max_payload_bytes=64 << 10)
    given = given.model_copy(update={"api_body_seconds": 1.0})
    runtime = open_runtime(given)
    register(runtime, "alpha", 2)
    with TestClient(create_app(runtime, token=None), LOCAL, raise_server_exceptions=False) as client:
        yield client, runtime
    runtime.close()


def left_behind(client: TestClient) -> dict[str, Any]:
    """Return everything that a request could have stored, but lines of the audit."""
    paths = ("/jobs", "/leases?ended=true", "/pools", "/tokens", "/queues", "/policy")
    return {path: client.get(path).json() for path in paths}


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.name)
def test_it_is_refused_and_leaves_nothing(world: tuple[TestClient, Runtime], shot: Shot) -> None:
    client, _runtime = world
    before = left_behind(client)
    more: dict[str, Any] = {"content": shot.raw} if shot.raw is not None else {}
    if shot.body is not None:
        more["json"] = shot.body
    answer = client.request(shot.method, shot.path, headers=shot.headers, **more)

    assert answer.status_code == shot.status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert left_behind(client) == before


# What no client library sends: over a real connection, to the server that `orch api` runs.

GET: Final = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST: Final = b"POST /jobs/submit HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
JOB: Final = b'{"argv": ["true"]}'
SMUGGLED: Final = POST + b"Content-Length: 18\r\n\r\n" + JOB

WIRE: Final = {
    "two lengths": (400, POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED),
    "a length of two numbers": (400, POST + b"Content-Length: 0, 18\r\n\r\n" + JOB),
    "a negative length": (400, POST + b"Content-Length: -1\r\n\r\n" + JOB),
    "a length with a sign": (400, POST + b"Content-Length: +18\r\n\r\n" + JOB),
    "a length in hexadecimal": (400, POST + b"Content-Length: 0x12\r\n\r\n" + JOB),
    "a length of 4000 digits": (400, POST + b"Content-Length: " + b"9" * 4000 + b"\r\n\r\n" + JOB),
    "chunks of no kind": (400, POST + b"Transfer-Encoding: cow\r\n\r\n" + JOB),
    "chunks twice": (400, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED),
    "a space before the colon": (400, POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED),
    "a size of a chunk that is none": (400, POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + JOB),
    "a chunk larger than any": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n" + JOB),
    "chunks without an end": (408, POST + b"Transfer-Encoding: chunked\r\n\r\n12\r\n" + JOB + b"\r\n"),
    "less than was promised": (408, POST + b"Content-Length: 100\r\n\r\n" + JOB),
    "more than is read": (413, POST + b"Content-Length: 10000000\r\n\r\n" + JOB),
    "a header without a name": (400, GET + b": x\r\n\r\n"),
    "a header with NUL": (400, GET + b"X: a\0b\r\n\r\n"),
    "a header without an end": (400, GET + b"X: " + b"a" * 20_000),
    "a line with NUL": (400, b"GET /\0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "no host": (400, b"GET /healthz HTTP/1.1\r\n\r\n"),
    "two hosts": (400, GET + b"Host: rebound.example\r\n\r\n"),
    "another protocol": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),
    "a proxy's request": (404, b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "a tunnel": (404, b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
    "two tokens": (
        401,
        b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n" + f"Authorization: Bearer {FORGED}\r\n".encode() * 2 + b"\r\n",
    ),
}


@pytest.fixture(scope="module")
def port(world: tuple[TestClient, Runtime]) -> Iterator[int]:
    """The same app on a port, served as ``orch api`` does it."""
    client, _runtime = world
    server = uvicorn.Server(uvicorn.Config(client.app, log_config=None, access_log=False, server_header=False))  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        serving.start()
        wait_for(lambda: server.started, within_seconds=10, describe="the server has started")
        yield listener.getsockname()[1]
        server.should_exit = True
        serving.join(10)


@pytest.mark.parametrize("name", WIRE)
def test_what_is_no_request_is_refused_and_hides_none(world: tuple[TestClient, Runtime], port: int, name: str) -> None:
    """The connection is closed behind it, so that nothing of it is taken for a request of its own."""
    client, _runtime = world
    before, (status, sent) = left_behind(client), WIRE[name]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        answered = b""
        while chunk := connection.recv(65536):
            answered += chunk
            if status in (401, 404):  # these are requests, and the connection goes on
                break

    assert answered.split(b" ")[1] == str(status).encode(), answered[:500]
    assert answered.count(b"HTTP/1.1 ") == 1
    assert left_behind(client) == before
