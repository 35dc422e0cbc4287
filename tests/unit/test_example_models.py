"""The models of the examples: small, but they have learned something."""

import pytest

from orchestrator.model_cache import ModelCache
from orchestrator_tasks import models
from orchestrator_tasks.sentiment import BLAME, PRAISE, Sentiment, features

#: Of words that it has learned, in sentences that it has not seen.
UNSEEN = {
    "a wonderful book": True,
    "the music was excellent and she smiled": True,
    "friendly staff, delicious food": True,
    "I am very happy": True,
    "a terrible, boring film": False,
    "the food was bad and the room noisy": False,
    "rude staff, awful music": False,
    "I am very angry": False,
}


def test_it_tells_praise_from_blame_also_in_what_it_has_not_seen() -> None:
    model = Sentiment.train()
    told = {text: model.probability(text) >= 0.5 for text in UNSEEN}
    assert told == UNSEEN
    assert all(model.probability(text) > 0.5 for text in PRAISE)
    assert all(model.probability(text) < 0.5 for text in BLAME)


def test_the_same_seed_gives_the_same_model() -> None:
    text = "a lovely book"
    assert Sentiment.train(seed=3).probability(text) == Sentiment.train(seed=3).probability(text)
    assert 0.0 < Sentiment.train().probability("") < 1.0


def test_pairs_of_words_count() -> None:
    assert features("Not good!") == {"not", "good", "not good"}


def test_models_have_names_and_versions() -> None:
    assert models.find("sentiment:v2") is models.find("sentiment")
    with pytest.raises(LookupError, match="there are: sentiment, sentiment-torch"):
        models.find("none")


def test_the_torch_variant_has_learned_the_same_and_can_sleep() -> None:
    pytest.importorskip("torch", reason="torch is an extra: pip install 'gpu-orchestrator[torch]'")
    cache = ModelCache(None)
    example = models.find("sentiment-torch")
    turns = {"sleep": example.sleep, "wake": example.wake}
    with cache.use("sentiment-torch", example.load, size_mib=example.size_mib, **turns) as model:
        told = {text: model.probability(text) for text in UNSEEN}
        assert all(model.probability(text) > 0.5 for text in PRAISE)
        assert all(model.probability(text) < 0.5 for text in BLAME)
    assert sum((told[text] >= 0.5) == well for text, well in UNSEEN.items()) >= 7
    cache.sleep()
    assert cache.asleep() == {"sentiment-torch"}
    with cache.use("sentiment-torch", example.load, size_mib=example.size_mib, **turns) as again:
        assert {text: again.probability(text) for text in UNSEEN} == told
        assert again is model
