"""What operators set while the system runs: limits of queues, and values for the whole installation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Final

from orchestrator.errors import InvalidPolicy

LONGEST_SECONDS: Final = 366 * 86_400.0
MOST_RUNNING: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a queue; None: none."""

    most_running: int | None = None  # jobs at once, on all hosts together
    time_limit_seconds: float | None = None  # of jobs that bring none


@dataclass(frozen=True, slots=True)
class Values:
    """Values for the whole installation."""

    safe_mode: bool = False  # no job starts; what runs goes on
    pool_idle_seconds: float = 600.0  # a pool that nobody used for so long gives its GPUs back
    max_gpu_memory_fraction: float = 1.0  # of each GPU's memory, that is lent out in shares


@dataclass(frozen=True, slots=True)
class Policy:
    """The values in force; version 0: nobody has changed any."""

    values: Values = Values()
    version: int = 0
    changed_by: str | None = None
    changed_at: datetime | None = None


def limits_after(limits: Limits, changes: Mapping[str, object]) -> Limits:
    """Return limits with changes, named by their fields.

    Raises:
        InvalidPolicy: With every fault.
    """
    faults = _unknown(changes, Limits)
    most, seconds = (changes.get(name) for name in ("most_running", "time_limit_seconds"))
    if most is not None and not (_is_number(most, whole=True) and 0 <= most <= MOST_RUNNING):  # type: ignore[operator]
        faults.append(f"most_running: must be 0 to {MOST_RUNNING}, or null")
    if seconds is not None and not (_is_number(seconds) and 0 < seconds <= LONGEST_SECONDS):  # type: ignore[operator]
        faults.append(f"time_limit_seconds: must be above 0 and at most {LONGEST_SECONDS:g}, or null")
    if faults:
        raise InvalidPolicy(faults)
    return replace(limits, **changes)  # type: ignore[arg-type]


def values_after(values: Values, changes: Mapping[str, object]) -> Values:
    """Return values with changes, named by their fields.

    Raises:
        InvalidPolicy: With every fault.
    """
    faults = _unknown(changes, Values)
    if not isinstance(changes.get("safe_mode", False), bool):
        faults.append("safe_mode: must be true or false")
    idle = changes.get("pool_idle_seconds", 0.0)
    if not (_is_number(idle) and 0 <= idle <= LONGEST_SECONDS):  # type: ignore[operator]
        faults.append(f"pool_idle_seconds: must be 0 to {LONGEST_SECONDS:g}")
    fraction = changes.get("max_gpu_memory_fraction", 1.0)
    if not (_is_number(fraction) and 0 < fraction <= 1):  # type: ignore[operator]
        faults.append("max_gpu_memory_fraction: must be above 0 and at most 1")
    if faults:
        raise InvalidPolicy(faults)
    return replace(values, **changes)  # type: ignore[arg-type]


def _unknown(changes: Mapping[str, object], kind: type) -> list[str]:
    known = [field.name for field in fields(kind)]
    return [f"{name}: unknown; there are: {', '.join(known)}" for name in changes if name not in known]


def _is_number(value: object, *, whole: bool = False) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def headroom_mib(own_mib: int, memory_mib: int, fraction: float | None) -> int:
    """Return what of a GPU's memory is not lent out in shares: what its host keeps, or more as the policy says.

    Args:
        own_mib: What its host keeps.
        memory_mib: Of the GPU.
        fraction: ``max_gpu_memory_fraction``; None: nobody has set it.
    """
    return own_mib if fraction is None else max(own_mib, memory_mib - int(memory_mib * fraction))
