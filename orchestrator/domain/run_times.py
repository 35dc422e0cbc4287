"""How long the next run of a task is expected to take."""

from typing import Final

#: Weight of the newest run in the moving mean.
NEWEST: Final = 0.2


def expected_seconds(expected: float | None, ran_seconds: float) -> float:
    """Return the expectation after one more run: an exponential moving mean, to which the first run counts fully."""
    return ran_seconds if expected is None else expected + NEWEST * (ran_seconds - expected)
