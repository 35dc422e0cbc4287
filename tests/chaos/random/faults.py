"""How each fault of the plan is done to a world, and undone."""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Final, TypeAlias

import psutil
import redis

from orchestrator.testing.runner_dump import start_ticks
from tests.chaos.random.plan import Fault
from tests.chaos.random.world import Role, World
from tests.support.cluster import family, read_dumps
from tests.support.proxy import Proxy

Undo: TypeAlias = Callable[[], None]


class NothingToHit(Exception):
    """What the fault is about is not there just now."""


def inject(world: World, fault: Fault, failed: set[str]) -> Undo:
    """Let something go wrong, and return what ends it.

    Args:
        world: Where.
        fault: What.
        failed: Takes the ids of jobs whose own process was killed: they may end as failed.

    Raises:
        NothingToHit: If there is nothing that it could hit.
        Unavailable: If what it is about has to be looked up, and cannot be now.
    """
    name, _, thing = fault.kind.partition("_")
    if thing == "runner":
        return _on_runner(world, fault, name, failed)
    if name in ("kill", "stop") and thing in ("worker", "host", "guardian", "leader", "standby", "api"):
        return _on_process(world, fault, name, thing)
    if name in ("cut", "slow", "refuse", "black"):
        return _on_network(world, fault, name)
    return _SERVERS[fault.kind](world)


def _on_process(world: World, fault: Fault, verb: str, thing: str) -> Undo:
    if thing in ("leader", "standby"):
        role = world.beats()[thing == "standby"]
        if role is None:
            raise NothingToHit(fault.kind)
    else:
        role = world.roles[fault.target if thing != "api" else "api"]
    if role.process.popen.poll() is not None:
        raise NothingToHit(fault.kind)
    if thing == "guardian":
        pids = [_guardian(role)]
    elif thing == "host":
        pids = sorted(family(role.process.pid))
    else:
        pids = [role.process.pid]
    if verb == "stop":
        world.stop(pids)
        return world.resume
    if thing == "guardian":
        role.doomed = True
        os.kill(pids[0], signal.SIGKILL)
    else:
        world.kill(role)
    return _nothing


def _guardian(role: Role) -> int:
    for pid in sorted(family(role.process.pid)):
        with contextlib.suppress(psutil.Error):
            if "orchestrator.guardian" in " ".join(psutil.Process(pid).cmdline()):
                return pid
    raise NothingToHit("guardian")


def _on_runner(world: World, fault: Fault, verb: str, failed: set[str]) -> Undo:
    """Hit a process that does a job just now, as the jobs themselves tell."""
    lines = read_dumps(world.cluster.dumps)
    ended = {(line["pid"], line["job"], line["attempt"]) for line in lines if line["what"] == "end"}
    begun = [line for line in lines if line["what"] == "start"]
    alive = [
        line
        for line in begun[-50:]
        if (line["pid"], line["job"], line["attempt"]) not in ended and start_ticks(line["pid"]) == line["ticks"]
    ]
    if not alive:
        raise NothingToHit(fault.kind)
    victim = alive[int(fault.draw * len(alive))]
    if verb == "stop":
        world.stop([victim["pid"]])
        return world.resume
    # Whichever job the process does when the signal comes fails by it; a warm one may have gone on to the next.
    failed.add(victim["job"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim["pid"], signal.SIGKILL)
    return _nothing


def _on_network(world: World, fault: Fault, verb: str) -> Undo:
    to_redis = fault.kind.endswith("redis")
    proxy: Proxy = (world.to_redis if to_redis else world.to_database)[fault.target]
    if verb == "cut":
        proxy.cut()
    elif verb == "slow":
        proxy.delay(0.05 + 0.2 * fault.draw)
    elif verb == "refuse":
        proxy.refuse()
    else:
        proxy.black_hole()
    return proxy.heal


def _restart_redis(world: World) -> Undo:
    world.redis.kill()
    world.redis.start()
    return _nothing


def _flush_redis(world: World) -> Undo:
    world.redis.clear()
    return _nothing


def _delete_streams(world: World) -> Undo:
    with world.redis.client() as client:
        for key in _streams(client):
            client.delete(key)
    return _nothing


def _trim_streams(world: World) -> Undo:
    with world.redis.client() as client:
        for key in _streams(client):
            client.xtrim(key, maxlen=0, approximate=False)
    return _nothing


def _streams(client: redis.Redis) -> list[bytes]:
    return [key for key in client.scan_iter("stream:orchestrator:*") if client.type(key) == b"stream"]


def _restart_database(world: World) -> Undo:
    assert world.mariadb is not None
    world.mariadb.stop()
    world.mariadb.start()
    return _nothing


def _kill_database(world: World) -> Undo:
    assert world.mariadb is not None
    world.mariadb.kill()
    world.mariadb.start()
    return _nothing


def _kill_connections(world: World) -> Undo:
    world.mariadb_says("KILL USER 'orchestrator'@'127.0.0.1'")
    return _nothing


def _read_only_database(world: World) -> Undo:
    world.mariadb_says("SET GLOBAL read_only = 1")
    return lambda: world.mariadb_says("SET GLOBAL read_only = 0") and None


def _lock_database(world: World) -> Undo:
    lock = contextlib.ExitStack()
    lock.enter_context(world.sqlite_lock())
    return lock.close


def _nothing() -> None:
    """It has healed by itself, or heals with the next revival."""


_SERVERS: Final[dict[str, Callable[[World], Undo]]] = {
    "restart_redis": _restart_redis,
    "flush_redis": _flush_redis,
    "delete_streams": _delete_streams,
    "trim_streams": _trim_streams,
    "restart_database": _restart_database,
    "kill_database": _kill_database,
    "kill_connections": _kill_connections,
    "read_only_database": _read_only_database,
    "lock_database": _lock_database,
}
