"""The installation that a randomized run works on: two hosts behind proxies, two beats, an api, and their revival."""

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import make_url

from orchestrator.errors import Unavailable
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.testing.runner_dump import VARIABLE
from tests.chaos.random.plan import HOSTS
from tests.chaos.support import FaultCluster
from tests.support.cluster import ROOT, Process
from tests.support.proxy import Proxy
from tests.support.servers import MariaDBServer, RedisServer, free_port
from tests.support.waiting import wait_for

#: Short times, long enough that a busy machine of two cores does not lose leases without a fault.
TIMES: Final[Mapping[str, Any]] = {
    "lease_ttl": 6,
    "lease_margin": 1.5,
    "expiry_grace": 1,
    "leader_ttl": 4,
    "sweep_interval": 0.3,
    "recheck_interval": 2,
    "lost_delay": 0.1,
    "visibility": 10,
    "max_lost": 50,
    "default_grace": 2,
}
GPUS: Final = 3
SLOTS: Final = 4
TASKS: Final = ROOT / "tests" / "integration" / "worker"  # where tasks_app is
START_SECONDS: Final = 120.0


@dataclass
class Role:
    """A process that has to be there, and is started again when it has ended."""

    name: str
    start: Callable[[], Process]
    process: Process
    unplanned: list[int] = field(default_factory=list)  # exit codes of ends that no fault asked for
    starts: int = 1
    doomed: bool = False  # a fault has just ended it


class World:
    """Everything that runs; ``close`` is the caller's, through ``open_world``."""

    def __init__(self, cluster: FaultCluster, redis: RedisServer, mariadb: MariaDBServer | None) -> None:
        self.cluster, self.redis, self.mariadb = cluster, redis, mariadb
        self.api_port = free_port()
        self.to_redis = {host: Proxy(redis.port) for host in HOSTS}
        self.to_database = {host: Proxy(mariadb.port) for host in HOSTS} if mariadb else {}
        self.roles: dict[str, Role] = {}
        self.stopped: set[int] = set()  # processes that a fault has stopped

    @property
    def api_url(self) -> str:
        """Where the api serves."""
        return f"http://127.0.0.1:{self.api_port}"

    def start(self) -> None:
        """Start every process and wait until hosts, a leader and the api are there."""
        for host in HOSTS:
            self._role(host, lambda host=host: self._worker(host))
        for name in ("beat-1", "beat-2"):
            self._role(name, lambda name=name: self._beat(name))
        self._role("api", lambda: self.cluster.spawn("api", ["orchestrator_cli", "api", "--port", str(self.api_port)]))
        wait_for(self.is_whole, within_seconds=START_SECONDS, describe=self.cluster.logs)

    def is_whole(self) -> bool:
        """Tell whether every host is registered by a living worker and somebody leads."""
        try:
            live = {record.name for record in self.cluster.runtime.cluster.nodes() if record.live}
            return live >= set(HOSTS) and self.cluster.runtime.leadership.current() is not None
        except Unavailable:
            return False

    def revive(self) -> None:
        """Start again whatever has ended."""
        for role in self.roles.values():
            if (code := role.process.popen.poll()) is None:
                continue
            if not role.doomed:
                role.unplanned.append(code)
            role.doomed = False
            role.process = role.start()
            role.starts += 1

    def kill(self, role: Role) -> None:
        """Kill a role's process; it is started again with the next ``revive``."""
        role.doomed = True
        with contextlib.suppress(ProcessLookupError):
            role.process.popen.kill()

    def beats(self) -> tuple[Role | None, Role | None]:
        """Return the leading beat and the standby, as the database knows them."""
        term = self.cluster.runtime.leadership.current()
        pair = [self.roles["beat-1"], self.roles["beat-2"]]
        pid = None if term is None else int(term.holder.split(":")[1])
        leader = next((role for role in pair if role.process.pid == pid), None)
        standby = next((role for role in pair if role is not leader), None)
        return leader, standby

    def stop(self, pids: list[int]) -> None:
        """Stop processes (SIGSTOP) until ``resume``."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.stopped.add(pid)

    def resume(self) -> None:
        """Let every stopped process go on."""
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped.clear()

    def heal(self) -> None:
        """End every fault that lasts."""
        self.resume()
        for proxy in (*self.to_redis.values(), *self.to_database.values()):
            proxy.heal()
        if self.mariadb is not None:
            self.mariadb_says("SET GLOBAL read_only = 0")
        self.revive()

    def mariadb_says(self, *statements: str) -> list[Any]:
        """Execute statements as root; return the rows of the last."""
        assert self.mariadb is not None
        with self.mariadb.connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    @contextlib.contextmanager
    def sqlite_lock(self) -> Iterator[None]:
        """Hold SQLite's one write lock, as a backup or a stopped writer does."""
        file = make_url(self.cluster.database_url).database
        assert file is not None
        connection = sqlite3.connect(file, isolation_level=None, timeout=30)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
        finally:
            connection.close()

    def end(self) -> None:
        """End every process in the orderly way, and the proxies."""
        self.resume()
        for role in self.roles.values():
            with contextlib.suppress(ProcessLookupError):
                role.process.popen.terminate()
        deadline = time.monotonic() + 40
        for role in self.roles.values():
            with contextlib.suppress(Exception):
                role.process.popen.wait(max(0.1, deadline - time.monotonic()))
        for proxy in (*self.to_redis.values(), *self.to_database.values()):
            proxy.close()

    def _role(self, name: str, start: Callable[[], Process]) -> None:
        self.roles[name] = Role(name, start, start())

    def _beat(self, name: str) -> Process:
        schedule = str(self.cluster.home / f"{name}.schedule")
        return self.cluster.spawn(name, ["orchestrator_cli", "beat", "-s", schedule])

    def _worker(self, host: str) -> Process:
        cards = self.cluster.home / f"{host}.toml"
        if not cards.exists():
            write_gpus(cards, make_gpus(GPUS, owner=f"{self.cluster.home.name}-{host}"))
        through: dict[str, Any] = {"redis_url": _through(self.cluster.redis_url, self.to_redis[host])}
        if self.to_database:
            through["database_url"] = _through(self.cluster.database_url, self.to_database[host])
        command = ["celery", "-A", "tasks_app", "worker", "-Q", "gpu", "-c", str(SLOTS), "-l", "INFO", "-E"]
        command += ["-n", f"orchestrator@{host}"]
        return self.cluster.spawn(host, command, path=TASKS, node=host, simulated_gpus=cards, **through)


@contextlib.contextmanager
def open_world(home: Path, *, database: str) -> Iterator[World]:
    """Servers, a database and a cluster of a run's own below a directory, without processes yet."""
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer(options=("--appendonly", "yes", "--maxclients", "2000")))
        mariadb = stack.enter_context(MariaDBServer()) if database == "mariadb" else None
        url = f"sqlite:///{home / 'orchestrator.db'}" if mariadb is None else restricted_url(mariadb)
        os.environ[VARIABLE] = str(home / "dumps.jsonl")
        stack.callback(os.environ.pop, VARIABLE, None)
        cluster = FaultCluster(home, url, redis.url, settings=TIMES)
        stack.callback(_end_all, cluster)
        world = World(cluster, redis, mariadb)
        stack.callback(world.end)
        yield world


def restricted_url(mariadb: MariaDBServer) -> str:
    """Make a database and a user without rights beyond it: a read-only server holds for that one."""
    name = mariadb.create_database()
    with mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE USER 'orchestrator'@'127.0.0.1'")
        cursor.execute(f"GRANT ALL ON `{name}`.* TO 'orchestrator'@'127.0.0.1'")
    return make_url(mariadb.url(name)).set(username="orchestrator").render_as_string(hide_password=False)


def _through(url: str, proxy: Proxy) -> str:
    return make_url(url).set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)


def _end_all(cluster: FaultCluster) -> None:
    for process in cluster.processes:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(20)
    cluster.runtime.close()
