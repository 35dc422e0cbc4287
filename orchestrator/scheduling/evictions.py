"""Which loaded models make room for another one: those whose loss costs least, and no more of them than needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

#: A use counts half as much after this time. Much longer, and yesterday's favourite would push out today's; much
#: shorter, and a model that one job in ten minutes needs would look like one that nobody does.
HIT_RATE_HALF_LIFE: Final = timedelta(minutes=10)

_HALF_LIFE_SECONDS: Final = HIT_RATE_HALF_LIFE.total_seconds()


@dataclass(frozen=True, slots=True)
class Hits:
    """Uses of a model, counted with exponential decay; ``at`` is in seconds of a clock that never runs backwards."""

    count: float = 0.0
    at: float = 0.0

    def count_at(self, now: float) -> float:
        """Return what the uses count by now."""
        return self.count * math.exp2((self.at - now) / _HALF_LIFE_SECONDS)

    def rate_at(self, now: float) -> float:
        """Return the uses per second; a steady rate counts to itself times the half-life over ln 2."""
        return self.count_at(now) * math.log(2) / _HALF_LIFE_SECONDS

    def with_use(self, now: float, uses: int = 1) -> Self:
        """Return these and one more, or some."""
        return type(self)(self.count_at(now) + uses, now)

    @classmethod
    def spread(cls, uses: int, since: float, until: float) -> Self:
        """Return what uses count to of which no more is known than their number and the time in which they were."""
        half_lives = max(until - since, 1.0) / _HALF_LIFE_SECONDS
        return cls(uses * (1 - math.exp2(-half_lives)) / (half_lives * math.log(2)), until)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model: ``score`` is the seconds that its load took times its uses per second."""

    name: str
    size_mib: int
    score: float
    in_use: bool


def choose_victims(models: Sequence[LoadedModel], needed_mib: int) -> list[str] | None:
    """Choose the models to unload so that ``needed_mib`` come free, lowest score first.

    A model in use is never chosen, nor one of 0 MiB, of which nothing would come free.

    Args:
        models: The loaded ones, least recently used first: in this order they go when their scores are equal.
        needed_mib: What has to come free; at most 0 if nothing has to.

    Returns:
        The names; None if all that may be chosen is not enough.
    """
    unused = sorted(
        ((model.score, place, model) for place, model in enumerate(models) if not model.in_use and model.size_mib > 0),
        key=lambda ranked: ranked[:2],
    )
    victims: list[str] = []
    for _, _, model in unused:
        if needed_mib <= 0:
            break
        victims.append(model.name)
        needed_mib -= model.size_mib
    return victims if needed_mib <= 0 else None
