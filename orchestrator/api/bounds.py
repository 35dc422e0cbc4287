"""Bounds of fields whose values are checked where all requests are: told in the description, whoever reads it."""

from typing import Any, Final

from orchestrator.domain.adhoc import LONGEST_TTL, SHORTEST_TTL
from orchestrator.domain.pool import LONGEST_IDLE_SECONDS, LONGEST_LOAD_SECONDS, MOST_RUNNERS
from orchestrator.domain.request import LONGEST_GRACE_SECONDS, LONGEST_LIMIT_SECONDS
from orchestrator.domain.request_checks import MOST_ARGUMENTS, MOST_SECRETS
from orchestrator.domain.request_retries import MOST_ATTEMPTS
from orchestrator.domain.request_wants import MOST_ALTERNATIVES, MOST_CPUS, MOST_GPUS

Bounds = dict[str, Any]  # ``json_schema_extra`` of a field


def _between(least: float, most: float) -> Bounds:
    return {"minimum": least, "maximum": most}


def _up_to(most: float) -> Bounds:
    return {"exclusiveMinimum": 0, "maximum": most}


def _text(longest: int) -> Bounds:
    return {"minLength": 1, "maxLength": longest}


GPUS: Final = _between(0, MOST_GPUS)
CPUS: Final = _between(0, MOST_CPUS)
PRIORITY: Final = _between(0, 9)
ATTEMPTS: Final = _between(1, MOST_ATTEMPTS)
LIMIT: Final = _up_to(LONGEST_LIMIT_SECONDS)
GRACE: Final = _between(0, LONGEST_GRACE_SECONDS)
TTL: Final = _between(SHORTEST_TTL, LONGEST_TTL)
IDLE: Final = _between(0, LONGEST_IDLE_SECONDS)
LOAD: Final = _up_to(LONGEST_LOAD_SECONDS)
LEAST_RUNNERS: Final = _between(0, MOST_RUNNERS)
MAX_RUNNERS: Final = _between(1, MOST_RUNNERS)
ALTERNATIVES: Final[Bounds] = {"maxItems": MOST_ALTERNATIVES}
SECRETS: Final[Bounds] = {"maxItems": MOST_SECRETS}
ARGUMENTS: Final[Bounds] = {"minItems": 1, "maxItems": MOST_ARGUMENTS}
WORD: Final = _text(64)
NAME: Final = _text(128)
TASK: Final = _text(255)
KIND: Final = _text(256)
PROFILE: Final = _text(32)
