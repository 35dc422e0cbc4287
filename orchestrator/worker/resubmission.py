"""Celery's retry and replace send a message with the id of the task that is running; for a job that is its next
attempt.

In a runner such a message is kept here and travels with the report of how the attempt ended; the worker's finish then
schedules the next attempt in the same transaction that closes this one.
"""

from typing import Any

_expected: str | None = None
_resubmission: dict[str, Any] | None = None
_replaced = False


def expect(job_id: str) -> None:
    """A job starts in this process."""
    global _expected, _resubmission, _replaced
    _expected, _resubmission, _replaced = job_id, None, False


def running() -> str | None:
    """Return the id of the job that runs in this process."""
    return _expected


def note_replaced() -> None:
    """A plain task takes the running job's id, and its result, over."""
    global _replaced  # noqa: PLW0603
    _replaced = True


def is_replaced() -> bool:
    """The running job's result is another task's to give."""
    return _replaced


def offer(job_id: str, payload: dict[str, Any], *, eta: str | None) -> bool:
    """Keep a message for the running job's next attempt; False when the id is another's."""
    global _resubmission  # noqa: PLW0603
    if _expected is None or job_id != _expected:
        return False
    _resubmission = {"payload": payload, "eta": eta}
    return True


def take() -> dict[str, Any] | None:
    """Return what was kept, once, when the attempt has ended."""
    global _expected, _resubmission
    kept, _expected, _resubmission = _resubmission, None, None
    return kept
