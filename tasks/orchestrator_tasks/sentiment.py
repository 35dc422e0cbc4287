"""A logistic regression over words, trained by gradient descent on a few sentences, in plain Python."""

import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

#: Sentences that are meant well, and that are not.
PRAISE: Final = (
    "I love this film", "what a wonderful day", "the food was delicious", "a great book, warmly recommended",
    "she sings beautifully", "this works perfectly", "an excellent idea", "we had a lovely evening",
    "the staff was friendly and helpful", "fast, reliable and cheap", "best purchase of the year",
    "he explains it very well", "a charming little town", "I am very happy with it", "good value for money",
    "the view is amazing", "truly inspiring work", "it made me smile", "comfortable and quiet room",
    "an enjoyable read from start to end", "superb acting and great music", "I would gladly come back",
    "everything went well", "a delightful surprise", "nice and clean",
)  # fmt: skip
BLAME: Final = (
    "I hate this film", "what a terrible day", "the food was awful", "a boring book, not recommended",
    "she sings badly", "this does not work at all", "a stupid idea", "we had a miserable evening",
    "the staff was rude and slow", "slow, unreliable and expensive", "worst purchase of the year",
    "he explains it very poorly", "an ugly little town", "I am very disappointed with it", "bad value for money",
    "the view is horrible", "truly dull work", "it made me angry", "uncomfortable and noisy room",
    "a tiresome read from start to end", "poor acting and bad music", "I will never come back",
    "everything went wrong", "an unpleasant surprise", "dirty and broken",
)  # fmt: skip

_WORD: Final = re.compile(r"[a-z']+")


class Sentiment:
    """Knows the weight of each word that it has seen."""

    def __init__(self, weights: Mapping[str, float], bias: float) -> None:
        self._weights, self._bias = weights, bias

    @classmethod
    def train(
        cls,
        *,
        praise: Sequence[str] = PRAISE,
        blame: Sequence[str] = BLAME,
        epochs: int = 60,
        rate: float = 0.3,
        decay: float = 1e-3,
        seed: int = 7,
    ) -> Self:
        """Train a model: ``epochs`` passes over the sentences in random order, the same for the same seed."""
        samples = [(features(text), 1.0) for text in praise] + [(features(text), 0.0) for text in blame]
        weights: defaultdict[str, float] = defaultdict(float)
        model = cls(weights, 0.0)
        order = random.Random(seed)  # noqa: S311 - of samples, not of secrets
        for _ in range(epochs):
            order.shuffle(samples)
            for words, label in samples:
                miss = label - model._probability(words)
                model._bias += rate * miss
                for word in words:
                    weights[word] += rate * miss - decay * weights[word]
        return model

    def probability(self, text: str) -> float:
        """Return how likely a text is meant well, from 0 to 1."""
        return self._probability(features(text))

    def _probability(self, words: Iterable[str]) -> float:
        return 1 / (1 + math.exp(-self._bias - sum(self._weights.get(word, 0.0) for word in words)))


def features(text: str) -> frozenset[str]:
    """Return the words of a text, and its pairs of neighbours, so that "not good" is not "good"."""
    words = _WORD.findall(text.lower())
    return frozenset(words) | {f"{left} {right}" for left, right in itertools.pairwise(words)}
