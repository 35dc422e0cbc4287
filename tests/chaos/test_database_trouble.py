"""A database that takes no writes for a while: what runs goes on, submits are refused politely, nobody gives up."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pymysql
import pytest
from sqlalchemy import event, make_url, text

from orchestrator.domain.request import CommandRequest
from orchestrator.errors import StoreUnavailable
from orchestrator.storage.engine import open_database
from tests.chaos.random.world import restricted_url
from tests.chaos.support import LONG_SECONDS, PATIENT, FaultCluster
from tests.support.servers import MariaDBServer, free_port
from tests.support.waiting import wait_for

DEGRADED = "the database does not answer"


@pytest.fixture
def read_only(mariadb_server: MariaDBServer, tmp_path: Path, redis_url: str) -> Iterator[FaultCluster]:
    """A cluster whose database user has no right to write on a read-only server."""
    url = restricted_url(mariadb_server)
    with FaultCluster(tmp_path, url, redis_url, settings=PATIENT) as made:
        yield made
    name = make_url(url).database
    assert name is not None
    mariadb_server.drop_database(name)


@contextlib.contextmanager
def mariadb_without_writes(server: MariaDBServer) -> Iterator[None]:
    """Let the server take no writes."""
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL read_only = 1")
        try:
            yield
        finally:
            cursor.execute("SET GLOBAL read_only = 0")


@contextlib.contextmanager
def sqlite_without_writes(url: str) -> Iterator[None]:
    """Hold SQLite's only write lock."""
    file = make_url(url).database
    assert file is not None
    connection = sqlite3.connect(file, isolation_level=None, timeout=30)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


@pytest.fixture
def full_server(tmp_path: Path) -> Iterator[MariaDBServer]:
    """A server whose one file may not grow beyond a bound: InnoDB then says what it says of a full disk."""
    server = MariaDBServer(tmp_path / "server", options=bounded("64M"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def filling(full_server: MariaDBServer, tmp_path: Path, redis_url: str) -> Iterator[FaultCluster]:
    """A cluster on that server."""
    (tmp_path / "home").mkdir()
    url = full_server.url(full_server.create_database())
    with FaultCluster(tmp_path / "home", url, redis_url, settings=PATIENT) as made:
        yield made


def bounded(most: str) -> tuple[str, ...]:
    """Return the options of a server whose data is in one file of so many bytes at most."""
    return "--innodb-file-per-table=OFF", f"--innodb-data-file-path=ibdata1:12M:autoextend:max:{most}"


@contextlib.contextmanager
def mariadb_without_room(server: MariaDBServer, cluster: FaultCluster) -> Iterator[None]:
    """Fill the server's file, and have the job that runs print more than there is room for; then give it room."""
    with server.connect("mysql") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE filler (data LONGBLOB) ENGINE = InnoDB")
        for size in (1 << 20, 1 << 17, 1 << 14):
            with contextlib.suppress(pymysql.err.Error):  # "The table is full"
                while True:
                    cursor.execute("INSERT INTO filler VALUES (REPEAT('x', %s))", (size,))
    (cluster.home / "talk").touch()
    try:
        yield
    finally:
        server.stop()
        server.options = bounded("256M")
        server.start()


def post(cluster: FaultCluster, url: str, document: dict[str, object]) -> tuple[int, str | None, str]:
    """Post a document; return the answer's status, Retry-After and type."""
    answer = httpx.post(f"{url}/jobs/submit", json=document, headers=cluster.authorized, timeout=60)
    return answer.status_code, answer.headers.get("Retry-After"), answer.headers["Content-Type"]


def told(cluster: FaultCluster) -> dict[str, Any] | None:
    """Return what the worker tells of itself over Redis."""
    ask = ["celery", "-A", "orchestrator_tasks.app", "inspect", "stats", "-j", "-t", "5"]
    done = subprocess.run(
        [sys.executable, "-m", *ask], env=cluster.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    return dict(json.loads(done.stdout)["orchestrator@a"]["orchestrator"]) if done.returncode == 0 else None


def ride_out(
    cluster: FaultCluster, trouble: Callable[[], contextlib.AbstractContextManager[None]], *, large: int = 1
) -> None:
    """Have a job run through the trouble, and check what every process does meanwhile and afterwards.

    The job prints so many bytes, and the submit that is refused has so many, when ``talk`` is there.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    beat, worker = cluster.beat(), cluster.worker("a", gpus=2)
    api = cluster.spawn("api", ["orchestrator_cli", "api", "--port", str(port)])
    wait_for(lambda: "running on" in api.tail().lower(), within_seconds=LONG_SECONDS, describe=cluster.logs)
    go_on = cluster.home / "go-on"
    talk = f"if [ -e talk ]; then head -c {large} /dev/zero | tr '\\0' x; rm talk; fi"
    program = f"while [ ! -e {go_on} ]; do {talk}; sleep 0.05; done"
    running = cluster.submit(CommandRequest(argv=("sh", "-c", program), cwd=str(cluster.home), gpus=1))
    cluster.ids += running
    wait_for(lambda: cluster.job(running[0]).state == "running", within_seconds=LONG_SECONDS, describe=cluster.logs)
    document: dict[str, object] = {"argv": ["true", "x" * large], "key": "again", "cwd": str(cluster.home)}
    with trouble():
        status, retry_after, kind = post(cluster, url, document)
        assert (status, kind) == (503, "application/problem+json"), cluster.logs()
        assert retry_after is not None
        assert int(retry_after) > 0
        wait_for(lambda: DEGRADED in worker.log.read_text(), within_seconds=25, describe=cluster.logs)
        assert wait_for(lambda: told(cluster), within_seconds=20, describe=cluster.logs)["degraded"] is True
        go_on.touch()
    assert [process.popen.poll() for process in (beat, worker, api)] == [None] * 3, "nobody gives up"
    answers = wait_for(
        lambda: (answer := post(cluster, url, document))[0] < 300 and answer,
        within_seconds=LONG_SECONDS,
        describe=cluster.logs,
    )
    assert answers
    nodes = cluster.runtime.cluster.nodes
    wait_for(lambda: nodes()[0].degraded, within_seconds=20, describe=cluster.logs)  # it can be told now that it was
    cluster.load(3)
    jobs = cluster.finish()
    assert {job.attempt for job in jobs} == {1}
    wait_for(lambda: "answers again" in worker.log.read_text(), within_seconds=20, describe=cluster.logs)
    assert wait_for(lambda: told(cluster), within_seconds=20, describe=cluster.logs)["degraded"] is False


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_read_only_server_is_ridden_out(read_only: FaultCluster, mariadb_server: MariaDBServer) -> None:
    """Work in flight ends well, submits answer 503 with Retry-After, and every process goes on afterwards."""
    ride_out(read_only, lambda: mariadb_without_writes(mariadb_server))


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.timeout(300)
def test_a_full_server_is_ridden_out(filling: FaultCluster, full_server: MariaDBServer) -> None:
    """The same when nothing can be added to the database any more; once there is room, all of it is there."""
    ride_out(filling, lambda: mariadb_without_room(full_server, filling), large=500_000)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("stack", "times"), [("embedded", PATIENT)], ids=["embedded"])
def test_a_locked_file_is_ridden_out(cluster: FaultCluster, stack: str) -> None:
    """The same while another program holds SQLite's write lock."""
    ride_out(cluster, lambda: sqlite_without_writes(cluster.database_url))


def test_a_full_disk_is_an_unavailable_store_and_passes(tmp_path: Path) -> None:
    """SQLite that may not grow refuses the write as unavailable, keeps what was there, and goes on when it may."""
    database = open_database(f"sqlite:///{tmp_path / 'full.db'}")
    pages = ["PRAGMA max_page_count = 8"]
    event.listen(database.engine, "checkout", lambda connection, *_: connection.execute(pages[0]))

    def write(size: int) -> None:
        database.transaction(lambda connection: connection.execute(text(f"INSERT INTO t VALUES (zeroblob({size}))")))

    try:
        database.transaction(lambda connection: connection.execute(text("CREATE TABLE t (data)")))
        write(10)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="full"):
            write(1 << 20)
        assert time.monotonic() - began < 10, "it is not tried for long: its caller decides"
        assert database.read(lambda connection: connection.execute(text("SELECT COUNT(*) FROM t")).scalar()) == 1
        pages[0] = "PRAGMA max_page_count = 100000"
        write(1 << 20)
        assert database.read(lambda connection: connection.execute(text("SELECT COUNT(*) FROM t")).scalar()) == 2
    finally:
        database.close()
