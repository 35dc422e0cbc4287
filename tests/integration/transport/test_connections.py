"""Ways to reach a server: password, TLS, Sentinel, a port, and what is refused."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kombu import Connection

from orchestrator.errors import StreamUnavailable
from orchestrator.streams import client as streams_client
from orchestrator.streams.client import broker_url, connect
from orchestrator.transport import channel as channel_module

from .inbox import Inbox, publish
from .servers import RedisServer, redis_binaries, wait_for

SYSTEM = redis_binaries()["system"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def goes_through(connection: Connection) -> bool:
    """Whether a message gets from one end to the other."""
    with connection:
        publish(connection, "q", "x")
        return Inbox(connection, "q", ack=True).drain(1).bodies == ["x"]


def test_a_password_in_the_url_is_used_and_a_wrong_one_refused(tmp_path: Path) -> None:
    port = free_port()
    server = RedisServer(SYSTEM, tmp_path, "--port", str(port), "--bind", "127.0.0.1")
    try:
        server.client().config_set("requirepass", "sec:ret")
        assert goes_through(Connection(broker_url(f"redis://:sec%3Aret@127.0.0.1:{port}/0")))
        assert goes_through(Connection(broker_url(f"unix://:sec%3Aret@{server.socket}?db=3")))
        assert connect(f"unix://:sec%3Aret@{server.socket}?db=3").ping()
        wrong = Connection(broker_url(f"redis://:wrong@127.0.0.1:{port}/0"))
        with pytest.raises(wrong.connection_errors):
            wrong.connect()
        assert "ret" not in wrong.as_uri()
    finally:
        server.process.terminate()
        server.process.wait(10)


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A server that speaks TLS alone, and the certificate to trust."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    options = ["--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)]
    server = RedisServer(SYSTEM, tmp_path, *options)
    yield port, certificate
    server.stop()


def test_tls_trusts_nobody_by_default(tls_server: tuple[int, Path]) -> None:
    """Stock kombu defaults to no check at all."""
    port, certificate = tls_server
    url = broker_url(f"rediss://localhost:{port}/0")
    stranger = Connection(url)
    with pytest.raises(stranger.connection_errors):
        stranger.connect()
    assert goes_through(Connection(url, ssl={"ssl_ca_certs": str(certificate)}))
    assert goes_through(Connection(f"{url}?ssl_ca_certs={certificate}&ssl_cert_reqs=required"))


def test_sentinel_names_the_master(tmp_path: Path) -> None:
    port, sentinel_port, other_port = free_port(), free_port(), free_port()
    server = RedisServer(SYSTEM, tmp_path, "--port", str(port), "--bind", "127.0.0.1")
    settings = tmp_path / "sentinel.conf"
    settings.write_text(f"port {sentinel_port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {port} 1\n")
    sentinel = subprocess.Popen(
        [SYSTEM, str(settings), "--sentinel", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: _listens(sentinel_port), seconds=10, what="a sentinel")
        url = f"sentinel-streams://127.0.0.1:{sentinel_port};sentinel-streams://127.0.0.1:{other_port}"
        options = {"master_name": "main", "consumer_name": "c"}
        assert goes_through(Connection(url, transport_options=options))
        assert server.client().exists("stream:orchestrator:q")
    finally:
        sentinel.terminate()
        sentinel.wait(10)
        server.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_redis_cluster_is_refused_when_the_connection_is_made(tmp_path: Path) -> None:
    port = free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        str(free_port()),
    ]
    server = RedisServer(SYSTEM, tmp_path, *options)
    try:
        with pytest.raises(StreamUnavailable, match="Cluster"):
            Connection(f"redis-streams://127.0.0.1:{port}/0").connect()
        with pytest.raises(StreamUnavailable, match="Cluster"):
            streams_client.probe(connect(f"redis://127.0.0.1:{port}/0"))
    finally:
        server.stop()
        channel_module._capabilities.clear()


def test_fanout_stays_what_stock_kombu_makes_of_it(system_server: RedisServer) -> None:
    """Remote control and events go over pub/sub, so stock clients of the same server hear them."""
    from kombu import Consumer, Exchange, Queue

    exchange = Exchange("news", type="fanout")
    heard: list[str] = []
    stock = Connection(f"redis+socket://{system_server.socket}?virtual_host=0")
    with Connection(system_server.broker) as ours, stock:
        publisher = ours.Producer()
        with Consumer(stock, [Queue("reader", exchange)], callbacks=[lambda body, _: heard.append(body)], no_ack=True):

            def hears() -> bool:
                publisher.publish("hello", exchange=exchange, declare=[exchange])
                with suppress(TimeoutError):
                    stock.drain_events(timeout=0.1)
                return bool(heard)

            wait_for(hears, seconds=5, what="the message")
    assert heard[0] == "hello"
