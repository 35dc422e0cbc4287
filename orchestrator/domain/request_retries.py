"""What a request says of attempts: how many, and after which failures."""

from collections.abc import Mapping
from typing import Final, Protocol

from orchestrator.domain.job import FailureClass
from orchestrator.domain.request_checks import Checks
from orchestrator.domain.retry import RETRIABLE, RetryOn

MOST_ATTEMPTS: Final = 100


class AsksForAttempts(Protocol):
    """The part of a request that this is about."""

    @property
    def max_attempts(self) -> int: ...

    @property
    def retry_on(self) -> Mapping[str, int | None] | None: ...


def check_retry_on(checks: Checks, request: AsksForAttempts) -> None:
    """Check the classes that are named, and that each says how often."""
    if request.retry_on is None:
        return
    given: object = request.retry_on  # it may come from outside
    if not isinstance(given, Mapping):
        checks.add("retry_on", "must map failure classes to numbers")
        return
    known = ", ".join(RETRIABLE)
    for name, times in given.items():
        if name not in RETRIABLE:
            more = "; a lost worker is no failure, and bounded by max_lost" if name in ("lost", "lease_expired") else ""
            checks.add("retry_on", f"{str(name)[:64]!r} is none of {known}{more}")
        elif times is None:
            if request.max_attempts == 1:
                checks.add("retry_on", f"{name}: say how often, as {name}=2, or how many retries there are in all")
        else:
            checks.whole(f"retry_on.{name}", times, 1, MOST_ATTEMPTS - 1)


def retry_on_of(request: AsksForAttempts) -> RetryOn | None:
    """Return for each class that is named after how many failures at most another attempt follows."""
    if not request.retry_on:
        return None
    every = request.max_attempts - 1
    return {FailureClass(name): every if times is None else times for name, times in request.retry_on.items()}


def most_attempts(request: AsksForAttempts) -> int:
    """Return how many attempts may fail in all: a class that names its own number may go beyond that of all."""
    return max([request.max_attempts, *(times + 1 for times in (retry_on_of(request) or {}).values())])
