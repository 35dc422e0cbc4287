"""How fast jobs end on this host, and how many may therefore be on their way to it."""

from typing import Final

from orchestrator.clock import Clock

#: Jobs are counted over windows of this many seconds; the look-ahead is what one window ends.
WINDOW: Final = 0.5
#: A host may always be this much ahead, so that the count can rise at all.
LEAST: Final = 8


class Pace:
    """Counts finished jobs per window; the look-ahead at most doubles, or halves, from one window to the next."""

    def __init__(self, clock: Clock, *, most: int) -> None:
        self._clock, self._most = clock, most
        self._window_start = clock.monotonic()
        self._count = 0
        self._last = 0

    def note(self, jobs: int) -> None:
        """Some jobs have ended."""
        self._roll()
        self._count += jobs

    def look_ahead(self) -> int:
        """Return how many jobs beyond its capacity the host is likely to end within a window."""
        self._roll()
        seen = max(self._last, self._count)
        return min(self._most, 2 * seen if seen >= LEAST // 2 else 0)

    def _roll(self) -> None:
        now = self._clock.monotonic()
        windows = int((now - self._window_start) / WINDOW)
        if windows:
            # A pause halves what is remembered from window to window: the next burst does not start from nothing.
            self._last = max(self._count, self._last // 2) >> min(windows - 1, 32)
            self._count = 0
            self._window_start += windows * WINDOW
