"""How many more entries of a queue may be delivered, for queues whose consumer says so."""

from collections.abc import Mapping


class Credit:
    """Credit by queue; a queue without any is limited by prefetch alone."""

    def __init__(self) -> None:
        self._left: dict[str, int] = {}
        self._set_aside: dict[str, int] = {}  # asked for by a read that has not been answered

    def __contains__(self, queue: str) -> bool:
        return queue in self._left

    def set(self, queue: str, entries: int | None) -> None:
        """Set what is left; None ends the regime.

        Raises:
            ValueError: If ``entries`` is negative.
        """
        if entries is None:
            self._left.pop(queue, None)
        elif entries < 0:
            raise ValueError(f"credit of {queue!r} must not be negative: {entries}")
        else:
            self._left[queue] = entries

    def left(self) -> Mapping[str, int]:
        """Return a copy of what is left of each queue's credit."""
        return dict(self._left)

    def available(self, queue: str) -> int:
        """Return how much may be asked for now."""
        return max(self._left[queue] - self._set_aside.get(queue, 0), 0)

    def set_aside(self, asked: Mapping[str, int]) -> None:
        """Keep so much for a read that is about to be sent."""
        for queue, entries in asked.items():
            self._set_aside[queue] = self._set_aside.get(queue, 0) + entries

    def return_aside(self, asked: Mapping[str, int]) -> None:
        """Give back what was set aside: the read was answered, or lost."""
        for queue, entries in asked.items():
            self._set_aside[queue] = max(self._set_aside.get(queue, 0) - entries, 0)

    def spend(self, queue: str) -> None:
        """Count one delivered entry."""
        if queue in self._left:
            self._left[queue] = max(self._left[queue] - 1, 0)
