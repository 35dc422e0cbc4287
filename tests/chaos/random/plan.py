"""What a randomized run does and when: a pure function of its seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

HOSTS: Final = ("a", "b")

#: Faults of processes: kind -> (what it may hit, longest time until it is healed in seconds; 0 heals itself).
PROCESS_FAULTS: Final = {
    "kill_worker": (HOSTS, 0.0),
    "stop_worker": (HOSTS, 9.0),
    "stop_host": (HOSTS, 9.0),
    "kill_guardian": (HOSTS, 0.0),
    "stop_guardian": (HOSTS, 9.0),
    "kill_runner": (("any",), 0.0),
    "stop_runner": (("any",), 4.0),
    "kill_leader": (("beat",), 0.0),
    "stop_leader": (("beat",), 8.0),
    "kill_standby": (("beat",), 0.0),
    "kill_api": (("api",), 0.0),
    "stop_api": (("api",), 4.0),
}
REDIS_FAULTS: Final = {
    "restart_redis": (("redis",), 0.0),
    "flush_redis": (("redis",), 0.0),
    "delete_streams": (("redis",), 0.0),
    "trim_streams": (("redis",), 0.0),
    "cut_redis": (HOSTS, 0.0),
    "slow_redis": (HOSTS, 5.0),
    "refuse_redis": (HOSTS, 5.0),
    "black_hole_redis": (HOSTS, 5.0),
}
MARIADB_FAULTS: Final = {
    "restart_database": (("database",), 0.0),
    "kill_database": (("database",), 0.0),
    "kill_connections": (("database",), 0.0),
    "read_only_database": (("database",), 4.0),
    "cut_database": (HOSTS, 0.0),
    "slow_database": (HOSTS, 5.0),
    "refuse_database": (HOSTS, 5.0),
    "black_hole_database": (HOSTS, 5.0),
}
SQLITE_FAULTS: Final = {"lock_database": (("database",), 7.0)}

#: Of the run's length, the share at its start and at its end in which no fault begins.
QUIET_START: Final = 1.0
LONGEST_GAP: Final = 6.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at an instant of the run, and for how long."""

    at: float
    kind: str
    target: str
    seconds: float
    draw: float  # random fraction, for a choice that depends on what is there


@dataclass(frozen=True, slots=True)
class Wish:
    """A job that somebody submits at an instant of the run."""

    at: float
    key: str
    kind: str
    seconds: float  # that it works
    gpus: int
    by_api: bool
    cancel_after: float | None = None


#: Kind of job -> how often, relative to the others.
KINDS: Final = {
    "command": 8,
    "shared": 3,
    "task": 6,
    "cpu": 4,
    "sum": 3,
    "flaky": 2,
    "fails": 2,
    "fails_twice": 2,
    "cancelled": 3,
    "long": 2,
}


def plan_faults(seed: int, seconds: float, *, database: str) -> list[Fault]:
    """Return the faults of a run in order: one of the processes and one of the servers may overlap.

    Args:
        seed: The same seed and length give the same faults.
        seconds: The run's length.
        database: ``mariadb`` or ``sqlite``.
    """
    of_servers = REDIS_FAULTS | (MARIADB_FAULTS if database == "mariadb" else SQLITE_FAULTS)
    lanes = (("processes", PROCESS_FAULTS), ("servers", of_servers))
    faults = [fault for name, kinds in lanes for fault in _lane(random.Random(f"{seed} {name}"), kinds, seconds)]
    return sorted(faults, key=lambda fault: (fault.at, fault.kind))


def _lane(draws: random.Random, kinds: dict[str, tuple[Sequence[str], float]], seconds: float) -> Iterator[Fault]:
    """Yield one fault after another; every kind comes once before one comes again."""
    at = QUIET_START + draws.uniform(0, 2)
    bag: list[str] = []
    while at < seconds:
        if not bag:
            bag = sorted(kinds)
            draws.shuffle(bag)
        kind = bag.pop()
        targets, longest = kinds[kind]
        lasts = draws.uniform(0.3, longest) if longest else 0.0
        yield Fault(at, kind, draws.choice(targets), lasts, draws.random())
        at += lasts + draws.uniform(1, LONGEST_GAP)


def plan_load(seed: int, seconds: float, *, per_second: float) -> list[Wish]:
    """Return the jobs of a run in order."""
    draws = random.Random(f"{seed} load")
    names, weights = list(KINDS), list(KINDS.values())
    wishes: list[Wish] = []
    at = 0.0
    while (at := at + draws.expovariate(per_second)) < seconds:
        kind = draws.choices(names, weights)[0]
        lasts = draws.uniform(3, 8) if kind in ("long", "cancelled") else draws.uniform(0.02, 1.5)
        gpus = {"cpu": 0, "sum": 0}.get(kind, draws.choice((1, 1, 1, 2)) if kind in ("command", "long") else 1)
        cancel = draws.uniform(0, 4) if kind == "cancelled" else None
        wishes.append(Wish(at, f"chaos-{seed}-{len(wishes)}", kind, lasts, gpus, draws.random() < 0.4, cancel))
    return wishes
