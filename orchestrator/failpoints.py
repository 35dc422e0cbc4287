"""Named points on a job's way at which a test can hold, stop or kill the process that reaches them.

In production nothing is armed, and no setting or variable arms anything: only a test's own program that calls ``arm``
in the process that it wants to break, before it runs the product in it.
"""

from collections.abc import Callable
from typing import Final

#: Every point, and what is true when a process is there.
POINTS: Final = {
    "publish.before": "jobs are admitted and committed, their entries are not in a stream",
    "publish.after": "the entries are in their streams, and nobody has noted that",
    "delivery.received": "a worker was given an entry and has not claimed its job",
    "claim.in_transaction": "a claim has written everything and is not committed",
    "claim.committed": "a claim is committed and the worker does not know",
    "start.before": "the worker knows of its claim and has not started the job",
    "finish.before": "a job has ended and its finish is not committed",
    "finish.committed": "a finish is committed, its entry is not acknowledged",
    "renew.before": "leases are about to be renewed",
    "renew.committed": "leases are renewed and the worker does not know",
    "sweep.in_transaction": "a leader's sweep has written everything and is not committed",
}

_handler: Callable[[str], None] | None = None


def reach(point: str) -> None:
    """Tell whoever armed this process that it is at a point; does nothing in production."""
    if _handler is not None:
        _handler(point)


def arm(handler: Callable[[str], None] | None) -> None:
    """Have every point call ``handler`` with its name from now on, in whatever thread reaches it; None disarms."""
    global _handler  # noqa: PLW0603 - one handler a process is the whole purpose
    _handler = handler
