"""What is run: which files of which suite, on which pools, and in how many pieces."""

from dataclasses import dataclass, replace
from typing import Final, Literal

Transport = Literal["redis", "redis-streams"]
TRANSPORTS: Final[tuple[Transport, ...]] = ("redis", "redis-streams")
POOLS: Final = ("prefork", "threads", "runner")
NO_POOL: Final = "none"  # kombu's tests start no worker
#: The baseline has no pool of ours: it is prefork there.
BASELINE_POOL: Final = {"runner": "prefork"}


@dataclass(frozen=True, slots=True)
class Unit:
    """One run of pytest."""

    suite: str
    project: str
    files: tuple[str, ...]
    transport: Transport = "redis"
    pool: str = "prefork"
    shard: tuple[int, int] = (1, 1)
    flags: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()  # these alone, when failures are confirmed

    @property
    def name(self) -> str:
        """A name for its files."""
        return f"{self.suite}-{self.transport}-{self.pool}-{self.shard[0]}of{self.shard[1]}"


@dataclass(frozen=True, slots=True)
class Suite:
    """Files that are run together."""

    name: str
    project: str
    files: tuple[str, ...]
    shards: int = 1
    pools: tuple[str, ...] = ("prefork",)
    flags: tuple[str, ...] = ()

    def units(self, transport: Transport, pool: str) -> list[Unit]:
        """Return its pieces on one transport and pool."""
        made = Unit(self.name, self.project, self.files, transport, pool, flags=self.flags)
        return [replace(made, shard=(number, self.shards)) for number in range(1, self.shards + 1)]


def _celery(*names: str) -> tuple[str, ...]:
    return tuple(f"t/integration/test_{name}.py" for name in names)


#: Celery's integration suite whole, except for the tests of other services (test_backend: Azure; test_cache_backend:
#: memcached; test_serialization, test_upgrade, test_loader, test_logfile_format and test_database_backend need no
#: broker or choose their own). docs/celery.md says why each of kombu's files is here or not.
SUITES: Final = (
    Suite("canvas", "celery", _celery("canvas"), shards=4, pools=POOLS),
    Suite("tasks", "celery", _celery("tasks"), shards=2, pools=POOLS),
    Suite(
        "worker",
        "celery",
        _celery("inspect", "group_chains", "redis_backend", "security", "events_state_memory_leak"),
        pools=POOLS,
    ),
    Suite("processes", "celery", _celery("worker", "beat", "mem_leak_in_exception_handling", "request_backend_down")),
    Suite("recovery", "celery", _celery("connection_recovery"), flags=("--conformance-alias",)),
    Suite(
        "transport",
        "kombu",
        ("t/integration/test_redis.py", "t/integration/test_redis_brpop_qos.py"),
        pools=(NO_POOL,),
        flags=("--conformance-alias",),
    ),
    Suite(
        "virtual",
        "kombu",
        ("t/unit/transport/test_memory.py", "t/unit/test_simple.py", "t/unit/test_pidbox.py"),
        pools=(NO_POOL,),
        flags=("--conformance-memory",),
    ),
)
