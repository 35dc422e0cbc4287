"""When a failed attempt is followed by another, and after how long."""

from datetime import timedelta
from typing import Final

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
