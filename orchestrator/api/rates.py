"""How many requests a caller may send: a bucket that fills evenly and holds a few seconds' worth.

Each process counts for itself: several of them together let that many times more through.
"""

import math
from collections.abc import Callable
from typing import Final

from orchestrator.errors import RateLimited

#: A caller that was silent may send so many seconds' worth at once.
BURST_SECONDS: Final = 10.0
MOST_BUCKETS: Final = 4096


class Rates:
    """Buckets by caller; used by the event loop alone."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets: dict[str, tuple[float, float, float]] = {}  # key -> requests left, at, a second

    def take(self, key: str, per_minute: int) -> None:
        """Count one request of a caller.

        Raises:
            RateLimited: If it sent too many; the one refused is not counted.
        """
        now, rate = self._monotonic(), per_minute / 60
        left = _left(self._buckets.get(key), now, rate)
        if left < 1:
            raise RateLimited(math.ceil((1 - left) / rate))
        self._buckets[key] = (left - 1, now, rate)
        if len(self._buckets) > MOST_BUCKETS:
            self._forget_full(now)

    def _forget_full(self, now: float) -> None:
        """Forget whoever has been silent: a new bucket is as full as theirs."""
        self._buckets = {
            key: bucket
            for key, bucket in self._buckets.items()
            if _left(bucket, now, bucket[2]) < _size(bucket[2]) - 1e-9
        }


def _size(rate: float) -> float:
    return max(1.0, rate * BURST_SECONDS)


def _left(bucket: tuple[float, float, float] | None, now: float, rate: float) -> float:
    if bucket is None:
        return _size(rate)
    left, at, _rate = bucket
    return min(_size(rate), left + (now - at) * rate)
