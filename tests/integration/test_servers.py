"""The servers that the tests start: quickly, durably, and gone afterwards."""

import os
import time
from pathlib import Path

import pymysql
import pytest
import redis

from tests.support.servers import MariaDBServer, RedisServer, Server, embedded_redis_binary
from tests.support.waiting import wait_for


def test_mariadb_commits_durably_and_each_test_has_its_own_database(
    mariadb_server: MariaDBServer, mariadb_url: str
) -> None:
    """The settings that the product's promises rest on are on, and a test's database starts empty."""
    database = mariadb_url.rpartition("/")[2].partition("?")[0]
    with mariadb_server.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT @@innodb_flush_log_at_trx_commit, @@version")
        row = cursor.fetchone()
        assert row is not None
        assert row[0] == 1
        assert "MariaDB" in row[1]
        cursor.execute("SHOW TABLES")
        assert cursor.fetchall() == ()


def test_mariadb_is_reached_over_the_port_of_its_url(mariadb_server: MariaDBServer, mariadb_url: str) -> None:
    """The URL's host and port are the server's."""
    assert f"@127.0.0.1:{mariadb_server.port}/" in mariadb_url
    pymysql.connect(host="127.0.0.1", port=mariadb_server.port, user="root").close()


def test_a_killed_mariadb_comes_back_with_what_was_committed(tmp_path: Path) -> None:
    """A restart on the same directory keeps committed rows."""
    with MariaDBServer(tmp_path / "m") as server:
        name = server.create_database()
        with server.connect(name) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE t (n INT PRIMARY KEY) ENGINE=InnoDB")
            cursor.execute("INSERT INTO t VALUES (7)")
        server.kill()
        server.start()
        with server.connect(name) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT n FROM t")
            assert cursor.fetchall() == ((7,),)


def test_mariadb_starts_in_seconds() -> None:
    """Install and start together take less than ten seconds even on a loaded machine."""
    before = time.monotonic()
    with MariaDBServer():
        assert time.monotonic() - before < 10


@pytest.mark.parametrize("fixture", ["redis_server", "embedded_redis_server"])
def test_both_ways_to_redis_lead_to_one_server(fixture: str, request: pytest.FixtureRequest) -> None:
    """The port and the socket serve the same data."""
    server: RedisServer = request.getfixturevalue(fixture)
    server.clear()
    with server.client() as by_socket, redis.Redis.from_url(server.url) as by_port:
        by_socket.set("k", "v")
        assert by_port.get("k") == b"v"


@pytest.mark.quick
def test_the_embedded_redis_has_streams() -> None:
    """The wheel's server is recent enough for the transport (6.2: XAUTOCLAIM)."""
    with RedisServer(binary=embedded_redis_binary()) as server, server.client() as client:
        version = tuple(int(part) for part in client.info("server")["redis_version"].split(".")[:2])
        assert version >= (6, 2)


def test_a_server_leaves_no_process_and_no_directory() -> None:
    """After the block the process is gone and its directory too."""
    server: Server
    with RedisServer() as server:
        pid = server.pid
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), within_seconds=5, describe="the process's end")
    assert not server.directory.exists()


def test_a_paused_server_answers_again_when_resumed() -> None:
    """Chaos tests stop and continue servers."""
    with RedisServer() as server:
        server.pause()
        state = wait_for(lambda: _state(server.pid) == "T", within_seconds=5, describe="the stop")
        server.resume()
        assert state
        assert server.answers()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] if os.path.exists(f"/proc/{pid}") else ""
