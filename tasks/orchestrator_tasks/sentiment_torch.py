"""What ``sentiment`` answers, from a small neural network on the runner's GPU; needs the extra ``torch``."""

import random
import zlib
from collections.abc import Sequence
from typing import Final, Self

import torch
from torch import nn

from orchestrator_tasks.sentiment import BLAME, PRAISE, features

#: Words are told apart by a hash of so many values.
BUCKETS: Final = 4096


class TorchSentiment:
    """An embedding of words, their mean, and two layers."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._network, self._device = network, device

    @classmethod
    def train(
        cls,
        *,
        praise: Sequence[str] = PRAISE,
        blame: Sequence[str] = BLAME,
        epochs: int = 80,
        width: int = 32,
        seed: int = 7,
    ) -> Self:
        """Train a model on the first GPU that the runner sees, else on its CPUs."""
        torch.manual_seed(seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = nn.Sequential(
            nn.EmbeddingBag(BUCKETS, width, mode="mean"), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        ).to(device)
        model = cls(network, device)
        samples = [(text, 1.0) for text in praise] + [(text, 0.0) for text in blame]
        order = random.Random(seed)  # noqa: S311 - of samples, not of secrets
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        loss = nn.BCEWithLogitsLoss()
        for _ in range(epochs):
            order.shuffle(samples)
            optimizer.zero_grad()
            wanted = torch.tensor([[label] for _, label in samples], device=device)
            loss(model._scores([text for text, _ in samples]), wanted).backward()
            optimizer.step()
        network.eval()
        return model

    def probability(self, text: str) -> float:
        """Return how likely a text is meant well, from 0 to 1."""
        with torch.inference_mode():
            return float(torch.sigmoid(self._scores([text]))[0, 0])

    def sleep(self) -> None:
        """Lie in the host's memory."""
        self._network.to("cpu")

    def wake(self) -> None:
        """Be on the device again."""
        self._network.to(self._device)

    def _scores(self, texts: Sequence[str]) -> torch.Tensor:
        words = [[zlib.crc32(word.encode()) % BUCKETS for word in sorted(features(text))] or [0] for text in texts]
        starts = [0]
        for one in words[:-1]:
            starts.append(starts[-1] + len(one))
        flat = torch.tensor([word for one in words for word in one], device=self._device)
        scores: torch.Tensor = self._network[0](flat, torch.tensor(starts, device=self._device))
        return self._network[1:](scores)
