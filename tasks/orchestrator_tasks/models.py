"""The models of the examples, by name. Each is trained when it is loaded: nothing is downloaded."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Any, Protocol

from orchestrator import model_cache
from orchestrator_tasks.sentiment import Sentiment


class Classifier(Protocol):
    """What every example model can do."""

    def probability(self, text: str) -> float:
        """Return how likely a text is meant well, from 0 to 1."""
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """How a model comes to be, and the GPU memory that it takes."""

    load: Callable[..., Classifier]
    size_mib: int
    sleep: Callable[[Any], None] | None = None  # of a model that can lie in the host's memory for a while
    wake: Callable[[Any], None] | None = None

    def in_use(self, name: str, **options: Any) -> AbstractContextManager[Classifier]:
        """Give the model out of the runner's cache, loaded under this name with these options if it is not there."""
        load = partial(self.load, **options)
        return model_cache.use(name, load, size_mib=self.size_mib, sleep=self.sleep, wake=self.wake)


def find(name: str) -> Example:
    """Return the example model of this name; what follows a colon is a version of it.

    Raises:
        LookupError: If there is none.
    """
    try:
        return _EXAMPLES[name.partition(":")[0]]
    except KeyError:
        raise LookupError(f"there is no example model {name!r}; there are: {', '.join(sorted(_EXAMPLES))}") from None


def _load_torch(**options: Any) -> Classifier:
    from orchestrator_tasks.sentiment_torch import TorchSentiment  # of the extra `torch`, and slow to import

    return TorchSentiment.train(**options)


_EXAMPLES = {
    "sentiment": Example(Sentiment.train, size_mib=0),
    "sentiment-torch": Example(_load_torch, 64, methodcaller("sleep"), methodcaller("wake")),
}
