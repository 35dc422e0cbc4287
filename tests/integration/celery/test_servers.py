"""Workers on a broker behind TLS and behind Sentinel, and on a Redis Cluster, which is refused."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from orchestrator.streams.client import broker_url
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import wait_for

from .conftest import Plain

AppOf = Callable[[Plain], Any]
PATIENCE = 60
MASTER = "main"


class TlsServer(RedisServer):
    """A server that speaks TLS on its port, with a certificate that it made itself."""

    def __init__(self) -> None:
        super().__init__()
        self.certificate, key = self.directory / "certificate.pem", self.directory / "key.pem"
        self.tls_port = free_port()
        subprocess.run(
            [
                *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"],
                *["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(self.certificate)],
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        files = ["--tls-cert-file", str(self.certificate), "--tls-key-file", str(key)]
        files += ["--tls-ca-cert-file", str(self.certificate), "--tls-auth-clients", "no"]
        self.options = ("--tls-port", str(self.tls_port), *files)


class Sentinel(RedisServer):
    """One Sentinel that watches a master and decides alone."""

    name = "sentinel"

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        self._settings = self.directory / "sentinel.conf"
        self._settings.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 5000\n"
        )

    def argv(self) -> list[str]:
        return [self.binary, str(self._settings), "--sentinel"]

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def master_port(self) -> int:
        """Return the port of the master as it names it."""
        with self.client() as client:
            return int(client.sentinel_get_master_addr_by_name(MASTER)[1])

    def replicas(self) -> int:
        """Return how many replicas it knows that are up."""
        with self.client() as client:
            known = client.sentinel_slaves(MASTER)
        return sum(not one["is_disconnected"] and one["master-link-status"] == "ok" for one in known)


@pytest.fixture
def servers() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_a_worker_runs_tasks_over_tls(plain: Plain, app_of: AppOf, servers: contextlib.ExitStack) -> None:
    """The certificate is checked, unless the URL says otherwise; with the stock transport it is the reverse."""
    server = servers.enter_context(TlsServer())
    url = broker_url(f"rediss://localhost:{server.tls_port}/0")
    plain.broker = f"{url}?ssl_ca_certs={server.certificate}"
    plain.worker("encrypted", "-c", "1")
    tasks = app_of(plain)
    assert tasks.add.delay(1, 2).get(timeout=PATIENCE) == 3
    assert tasks.app.control.ping(timeout=5, limit=1) == [{"encrypted@plain": {"ok": "pong"}}]
    plain.broker = url
    refused = plain.celery("call", "plain_app.add", "--args", "[1, 2]")
    assert refused.returncode != 0
    assert "CERTIFICATE_VERIFY_FAILED" in refused.stderr


def test_a_worker_follows_sentinel_to_the_new_master(
    plain: Plain, app_of: AppOf, servers: contextlib.ExitStack
) -> None:
    """The master dies while a task runs and others wait: all of them run, and none that had ended runs again."""
    master, replica = servers.enter_context(RedisServer()), RedisServer()
    replica.options = ("--replicaof", "127.0.0.1", str(master.port))
    servers.enter_context(replica)
    sentinel = servers.enter_context(Sentinel(master))
    wait_for(lambda: sentinel.replicas() == 1, within_seconds=PATIENCE, describe="the replica is known and in step")
    plain.broker = f"sentinel-streams://127.0.0.1:{sentinel.port}"
    plain.conf |= {
        "broker_transport_options": {"master_name": MASTER, "visibility": 5},
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_prefetch_multiplier": 1,
        "task_acks_late": True,
    }
    plain.worker("watched", "-c", "1")
    tasks, path = app_of(plain), plain.site / "lines"
    assert tasks.add.delay(1, 2).get(timeout=PATIENCE) == 3
    running = tasks.leave_line.delay(str(path), 6)
    waiting = [tasks.add.delay(n, 1) for n in range(5)]
    wait_for(path.exists, within_seconds=PATIENCE, describe="the task runs")
    with master.client() as client:
        assert client.wait(1, 10_000) == 1  # the replica has all of it: what is not replicated, a failover loses
    master.kill()
    wait_for(lambda: sentinel.master_port() == replica.port, within_seconds=PATIENCE, describe="a failover")
    assert running.get(timeout=PATIENCE) == [False, False]
    assert [result.get(timeout=PATIENCE) for result in waiting] == [1, 2, 3, 4, 5]
    assert path.read_text().split() == [running.id]


def test_a_redis_cluster_is_refused_with_what_to_do_instead(plain: Plain, servers: contextlib.ExitStack) -> None:
    cluster = RedisServer(options=("--cluster-enabled", "yes", "--cluster-port", str(free_port())))
    servers.enter_context(cluster)
    plain.broker = broker_url(cluster.url)
    refused = plain.celery("worker", "-c", "1")
    assert refused.returncode != 0
    assert "this is a Redis Cluster" in refused.stderr
    assert "use a single server, or Sentinel" in refused.stderr
