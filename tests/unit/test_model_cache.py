"""Models that stay loaded between jobs."""

import threading
from datetime import timedelta

import pytest

from orchestrator import model_cache
from orchestrator.errors import ModelDoesNotFit
from orchestrator.model_cache import GPU_MEMORY_MIB, ModelCache
from orchestrator.scheduling.evictions import HIT_RATE_HALF_LIFE
from orchestrator.testing.clock import FakeClock


class Model:
    """What is loaded: its name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Gpu:
    """Loads models, each for some seconds, and remembers which, and which were unloaded."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.made: list[str] = []
        self.unloaded: list[str] = []

    def load(self, name: str, *, seconds: float = 1.0) -> Model:
        self.clock.advance(seconds)
        self.made.append(name)
        return Model(name)

    def unload(self, model: Model) -> None:
        self.unloaded.append(model.name)


def cache_of(gpu: Gpu, capacity_mib: int | None = 1000) -> ModelCache:
    return ModelCache(capacity_mib, clock=gpu.clock.monotonic)


def use(cache: ModelCache, gpu: Gpu, name: str, size_mib: int = 400, *, seconds: float = 1.0) -> str:
    with cache.use(name, lambda: gpu.load(name, seconds=seconds), size_mib=size_mib, unload=gpu.unload) as model:
        return model.name


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def cache(gpu: Gpu) -> ModelCache:
    return cache_of(gpu)


def test_a_model_is_loaded_once(cache: ModelCache, gpu: Gpu) -> None:
    assert [use(cache, gpu, "a"), use(cache, gpu, "a")] == ["a", "a"]
    assert gpu.made == ["a"]
    assert cache.loaded() == {"a": 400}


def test_of_equals_the_least_recently_used_makes_room(cache: ModelCache, gpu: Gpu) -> None:
    """Loads that take no time make all scores 0."""
    for name in ("a", "b", "a", "c"):
        use(cache, gpu, name, seconds=0.0)
    assert list(cache.loaded()) == ["a", "c"]
    assert gpu.unloaded == ["b"]


def test_what_loads_fast_makes_room_for_what_does_not(cache: ModelCache, gpu: Gpu) -> None:
    """Used equally often, the model whose load took less goes, also if it was used last."""
    use(cache, gpu, "slow", seconds=20.0)
    use(cache, gpu, "fast", seconds=2.0)
    use(cache, gpu, "new")
    assert gpu.unloaded == ["fast"]


def test_what_is_used_little_makes_room_for_what_is_used_often(cache: ModelCache, gpu: Gpu) -> None:
    for name in ("often", "often", "often", "seldom", "new"):
        use(cache, gpu, name)
    assert gpu.unloaded == ["seldom"]


def test_seconds_and_hits_are_weighed_against_each_other(cache: ModelCache, gpu: Gpu) -> None:
    """Three uses of a load of 1 s are worth less than one of 4 s, and four of 2 s are worth more."""
    for name, seconds in (("slow", 4.0), ("often", 1.0), ("often", 1.0), ("often", 1.0)):
        use(cache, gpu, name, seconds=seconds)
    use(cache, gpu, "more", seconds=2.0)
    assert gpu.unloaded == ["often"]
    for _ in range(3):
        use(cache, gpu, "more")
    use(cache, gpu, "new")
    assert gpu.unloaded == ["often", "slow"]


def test_what_was_popular_does_not_stay_for_ever(cache: ModelCache, gpu: Gpu) -> None:
    """After eight half-lives a hundred uses count less than one."""
    for _ in range(100):
        use(cache, gpu, "yesterday")
    gpu.clock.advance(8 * HIT_RATE_HALF_LIFE)
    use(cache, gpu, "today")
    use(cache, gpu, "new")
    assert gpu.unloaded == ["yesterday"]


def test_a_model_that_comes_back_has_the_uses_that_it_had(cache: ModelCache, gpu: Gpu) -> None:
    """Otherwise two that are used in turn would push each other out for as long as a former favourite counts."""
    use(cache, gpu, "former", seconds=3.0)
    for _ in range(3):
        use(cache, gpu, "a")
        use(cache, gpu, "b")
    assert gpu.unloaded == ["a", "b", "a", "b", "former"]
    assert list(cache.loaded()) == ["a", "b"]


def test_names_without_end_take_no_memory_without_end(cache: ModelCache, gpu: Gpu) -> None:
    for day in range(50):
        use(cache, gpu, f"model of day {day}")
        gpu.clock.advance(timedelta(days=1))
    assert len(cache._hits) <= 3


def test_as_many_make_room_as_needed_and_no_more(cache: ModelCache, gpu: Gpu) -> None:
    for name in ("a", "b", "c", "d"):
        use(cache, gpu, name, 250, seconds=0.0)
    use(cache, gpu, "big", 500)
    assert list(cache.loaded()) == ["c", "d", "big"]


def test_what_takes_no_memory_makes_no_room(cache: ModelCache, gpu: Gpu) -> None:
    for name, size_mib in (("on the host", 0), ("a", 600), ("b", 600)):
        use(cache, gpu, name, size_mib)
    assert gpu.unloaded == ["a"]


def test_a_model_in_use_is_never_unloaded(cache: ModelCache, gpu: Gpu) -> None:
    """Not even if it is the one that costs least."""
    with cache.use("a", lambda: gpu.load("a", seconds=0.0), size_mib=600) as model:
        use(cache, gpu, "b", 400, seconds=60.0)
        use(cache, gpu, "c", 300)
        assert gpu.unloaded == ["b"]
        with pytest.raises(ModelDoesNotFit, match=r"model 'd' takes 500 MiB; the lease has 1000.*in use take 600"):
            use(cache, gpu, "d", 500)
        assert not cache.drop("a")
        assert model.name == "a"
    assert "d" not in gpu.made
    assert cache.drop("a")
    assert list(cache.loaded()) == ["c"]


def test_what_can_never_fit_unloads_nothing(cache: ModelCache, gpu: Gpu) -> None:
    use(cache, gpu, "a")
    with pytest.raises(ModelDoesNotFit, match=r"takes 1001 MiB; the lease has 1000$"):
        use(cache, gpu, "huge", 1001)
    assert list(cache.loaded()) == ["a"]


def test_a_failed_load_leaves_nothing(cache: ModelCache) -> None:
    def fail() -> object:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"), cache.use("a", fail, size_mib=10):
        pass
    assert cache.loaded() == {}
    assert not cache.drop("a")


def test_a_block_that_raises_lets_go_of_its_model(cache: ModelCache, gpu: Gpu) -> None:
    with pytest.raises(ZeroDivisionError), cache.use("a", lambda: gpu.load("a"), size_mib=10):
        raise ZeroDivisionError
    assert cache.drop("a")


def test_a_negative_size_is_a_mistake(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match="size_mib: -1"):
        use(cache_of(gpu, None), gpu, "a", -1)


def test_threads_load_a_model_once(gpu: Gpu) -> None:
    cache = cache_of(gpu, None)
    threads = [threading.Thread(target=use, args=(cache, gpu, "a")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert gpu.made == ["a"]


def test_the_process_has_one_as_large_as_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPU_MEMORY_MIB, "300")
    monkeypatch.setattr(model_cache, "_process_cache", None)
    with model_cache.use("a", lambda: "model", size_mib=300) as model:
        assert model == "model"
    assert model_cache.loaded() == {"a": 300}
    assert model_cache.cache().capacity_mib == 300
    assert model_cache.drop("a")
