"""Where a process gets its time, injected everywhere and replaced only in tests."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic time for elapsed time; neither decides whether a lease is live."""

    def now(self) -> datetime:
        """Return aware UTC wall time, for records and logs."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards and count while the host sleeps, for elapsed time."""
        ...


class SystemClock:
    """The process's own clocks."""

    def now(self) -> datetime:
        """Return the host's wall time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return CLOCK_BOOTTIME: CLOCK_MONOTONIC stands still while a host is suspended, and a lease does not."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
