"""When a failed attempt is followed by another, and after how long."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Final, TypeAlias

from orchestrator.domain.job import FailureClass

#: How many attempts in all may have failed for a failure of each class to be followed by another one.
RetryOn: TypeAlias = Mapping[FailureClass, int]

#: What people may ask to have tried again; lost attempts are bounded by the installation's ``max_lost``.
RETRIABLE: Final = (
    FailureClass.EXIT,
    FailureClass.EXCEPTION,
    FailureClass.TIMEOUT,
    FailureClass.OOM,
    FailureClass.VRAM_EXCEEDED,
    FailureClass.IDLE,
)
#: Of them what would be no different the next time, and is tried again only if its class is named.
NOT_BY_ITSELF: Final = frozenset({FailureClass.VRAM_EXCEEDED, FailureClass.IDLE})
_OUT_OF_MEMORY: Final = frozenset({"MemoryError", "OutOfMemoryError"})
_TIMEOUTS: Final = frozenset({"SoftTimeLimitExceeded", "TimeLimitExceeded"})

BASE_DELAY: Final = timedelta(seconds=2)
LONGEST_DELAY: Final = timedelta(minutes=5)


def retry_delay(attempt: int, *, base: timedelta, ceiling: timedelta, draw: float) -> timedelta:
    """Return how long a job waits after its latest failed attempt.

    Args:
        attempt: Attempts made so far, the failed one included; at least 1.
        base: Longest wait after the first failure; it doubles with each further one.
        ceiling: Longest wait after any failure.
        draw: Random fraction in [0, 1), drawn by the caller.

    Raises:
        ValueError: If ``attempt`` is below 1.

    Source: docs/decisions/0004-retry-backoff.md, exponential backoff with full jitter.
    """
    if attempt < 1:
        raise ValueError(f"attempt must be at least 1, not {attempt}")
    longest = min(ceiling, base * float(2 ** min(attempt - 1, 32)))
    return longest * draw


def may_retry(failure: FailureClass, *, failed: int, max_attempts: int, retry_on: RetryOn | None) -> bool:
    """Return whether another attempt follows one that failed.

    Args:
        failure: How it failed.
        failed: Attempts that failed so far, this one included.
        max_attempts: Most attempts in all.
        retry_on: What the job's owner said of single classes, if anything; other classes are not tried again then.
    """
    if failure not in RETRIABLE or failed >= max_attempts:
        return False
    if retry_on is None:
        return failure not in NOT_BY_ITSELF
    return failed <= retry_on.get(failure, 0)


def class_of_exception(name: str) -> FailureClass:
    """Return the class of a task's failure by the name of what it raised."""
    if name in _OUT_OF_MEMORY:
        return FailureClass.OOM
    return FailureClass.TIMEOUT if name in _TIMEOUTS else FailureClass.EXCEPTION
