"""Wait for a condition with a deadline; the only place in the tests that sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


def wait_for(condition: Callable[[], T], *, within_seconds: float, describe: str | Callable[[], str]) -> T:
    """Return the condition's first true value.

    Args:
        condition: Asked again and again; what it raises goes through, so it must itself bear what it waits for.
        within_seconds: The deadline; the condition is always asked at least once, and once more at the end.
        describe: What was waited for, or a function that tells it, called only on failure.

    Raises:
        AssertionError: If there was no true value in time; it names the wait and the last value.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        is_last = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if is_last:
            what = describe if isinstance(describe, str) else describe()
            raise AssertionError(f"not within {within_seconds} s: {what} (last value: {value!r})")
        time.sleep(POLL_SECONDS)
