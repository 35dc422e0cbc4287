"""How long the tasks of each name ran of late, and how far ahead of a runner it therefore pays to claim."""

import math

from orchestrator.domain.run_times import expected_seconds


class RunTimes:
    """Expected run times in seconds, by task name."""

    def __init__(self, *, look_ahead_seconds: float, most_ahead: int) -> None:
        self.look_ahead_seconds = look_ahead_seconds
        self._most_ahead = most_ahead
        self._means: dict[str, float] = {}

    def note(self, task: str, seconds: float) -> None:
        """Add one finished run."""
        self._means[task] = expected_seconds(self._means.get(task), seconds)

    def mean(self, task: str) -> float:
        """Return the average run time of a task, 0 when none was seen."""
        return self._means.get(task, 0.0)

    def jobs_ahead(self, task: str) -> int:
        """Return how many jobs of this task may wait, claimed, behind a running one: none until a run was seen."""
        mean = self._means.get(task)
        if mean is None or mean > self.look_ahead_seconds:
            return 0
        return min(self._most_ahead, math.floor(self.look_ahead_seconds / max(mean, 1e-4)))
