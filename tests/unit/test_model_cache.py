"""Models that stay loaded between jobs."""

import sys
import threading
import weakref
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest

from orchestrator import model_cache
from orchestrator.errors import ModelDoesNotFit, ModelInUse
from orchestrator.model_cache import GPU_MEMORY_MIB, ModelCache, torch_reserved_mib
from orchestrator.scheduling.evictions import HIT_RATE_HALF_LIFE
from orchestrator.testing.clock import FakeClock

MIB = 2**20


class Model:
    """What is loaded: its name, and the memory that it takes."""

    def __init__(self, name: str, mib: int) -> None:
        self.name, self.mib = name, mib


class Gpu:
    """Loads models, each for some seconds, and remembers which, and which were unloaded; tells the memory they take."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.made: list[str] = []
        self.unloaded: list[str] = []
        self.taken_mib: int | None = 0  # None: nothing can tell

    def measure(self) -> int | None:
        return self.taken_mib

    def load(self, name: str, *, seconds: float = 1.0, mib: int = 0) -> Model:
        self.clock.advance(seconds)
        self.made.append(name)
        if mib:
            self.taken_mib = (self.taken_mib or 0) + mib
        return Model(name, mib)

    def unload(self, model: Model) -> None:
        self.unloaded.append(model.name)
        if self.taken_mib is not None:
            self.taken_mib -= model.mib


def cache_of(gpu: Gpu, capacity_mib: int | None = 1000) -> ModelCache:
    return ModelCache(capacity_mib, measure=gpu.measure, clock=gpu.clock.monotonic)


def use(
    cache: ModelCache, gpu: Gpu, name: str, size_mib: int | None = 400, *, seconds: float = 1.0, mib: int = 0
) -> str:
    """Use a model that is promised to take ``size_mib`` and takes ``mib``, if that is not 0."""

    def load() -> Model:
        return gpu.load(name, seconds=seconds, mib=mib)

    with cache.use(name, load, size_mib=size_mib, unload=gpu.unload) as model:
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
    for day in range(6):
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


def test_the_measured_size_counts_and_not_the_promised(cache: ModelCache, gpu: Gpu) -> None:
    use(cache, gpu, "a", 400, mib=300)
    use(cache, gpu, "b", 400, mib=450)
    assert cache.loaded() == {"a": 300, "b": 450}
    use(cache, gpu, "c", 250)
    assert cache.loaded() == {"a": 300, "b": 450, "c": 250}


@pytest.mark.parametrize("taken_mib", [None, 0, 7000], ids=["cannot be told", "nothing", "others"])
def test_a_promise_is_believed_where_nothing_is_measured(gpu: Gpu, taken_mib: int | None) -> None:
    gpu.taken_mib = taken_mib
    cache = cache_of(gpu)
    use(cache, gpu, "a", 400)
    assert cache.loaded() == {"a": 400}


def test_the_load_from_which_on_memory_is_told_is_measured(gpu: Gpu) -> None:
    """So is the first one that uses the GPUs at all."""
    gpu.taken_mib = None
    cache = cache_of(gpu)
    use(cache, gpu, "a", 400, mib=300)
    assert cache.loaded() == {"a": 300}


def test_what_makes_room_is_gone_before_the_load_is_measured(cache: ModelCache, gpu: Gpu) -> None:
    use(cache, gpu, "a", 800, mib=800)
    use(cache, gpu, "b", 700, mib=600)
    assert cache.loaded() == {"b": 600}


def test_a_load_larger_than_promised_unloads_others_afterwards(cache: ModelCache, gpu: Gpu) -> None:
    for name in ("a", "b"):
        use(cache, gpu, name, 300, mib=300, seconds=0.0)
    use(cache, gpu, "larger", 400, mib=500)
    assert cache.loaded() == {"b": 300, "larger": 500}
    assert gpu.unloaded == ["a"]


def test_a_load_too_large_beside_models_in_use_is_unloaded_again(cache: ModelCache, gpu: Gpu) -> None:
    """Nothing else is: it would not help. The error does not keep the model either."""
    models: list[weakref.ref[Model]] = []

    def load() -> Model:
        model = gpu.load("larger", mib=700)
        models.append(weakref.ref(model))
        return model

    use(cache, gpu, "idle", 200, mib=200)
    with (
        cache.use("a", lambda: gpu.load("a", mib=400), size_mib=400),
        pytest.raises(ModelDoesNotFit) as refused,
        cache.use("larger", load, size_mib=300, unload=gpu.unload),
    ):
        pytest.fail("it does not fit")
    assert gpu.unloaded == ["larger"]
    assert cache.loaded() == {"idle": 200, "a": 400}
    assert [model() for model in models] == [None]
    assert str(refused.value) == (
        "model 'larger' takes 700 MiB, measured (300 MiB promised); the lease has 1000, of which models in use take 400"
    )


def test_without_a_size_room_is_made_after_the_load(cache: ModelCache, gpu: Gpu) -> None:
    use(cache, gpu, "a", None, mib=600)
    use(cache, gpu, "b", None, mib=500)
    assert gpu.unloaded == ["a"]
    assert cache.loaded() == {"b": 500}
    with pytest.raises(ModelDoesNotFit, match=r"takes 1001 MiB, measured \(no size promised\); the lease has 1000$"):
        use(cache, gpu, "huge", None, mib=1001)
    assert cache.loaded() == {"b": 500}


@pytest.mark.parametrize("capacity_mib", [1000, None])
def test_without_a_size_and_a_measure_nothing_is_loaded(gpu: Gpu, capacity_mib: int | None) -> None:
    gpu.taken_mib = None
    with pytest.raises(ValueError, match=r"size_mib: nothing can tell .* model 'a' .* give its size"):
        use(cache_of(gpu, capacity_mib), gpu, "a", None)
    assert gpu.made == []


def test_a_load_that_uses_other_models_is_not_measured_with_them(cache: ModelCache, gpu: Gpu) -> None:
    def load() -> Model:
        use(cache, gpu, "part", 200, mib=200)
        return gpu.load("whole", mib=500)

    use(cache, gpu, "a", 400, mib=400)
    with cache.use("whole", load, size_mib=500):
        assert cache.loaded() == {"part": 200, "whole": 500}


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
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with model_cache.use("a", lambda: "model", size_mib=300) as model:
        assert model == "model"
    assert model_cache.loaded() == {"a": 300}
    assert model_cache.cache().capacity_mib == 300
    assert model_cache.drop("a")
    with pytest.raises(ValueError, match="size_mib"), model_cache.use("b", lambda: "model"):
        pass


class Cuda:
    """As much of ``torch.cuda`` as is asked: blocks in use and blocks kept for later, in bytes, for each device."""

    def __init__(self, *, used: list[int], kept: list[int]) -> None:
        self.used, self.kept, self.initialized = used, kept, True

    def is_initialized(self) -> bool:
        return self.initialized

    def device_count(self) -> int:
        return len(self.used)

    def empty_cache(self) -> None:
        self.kept = [0] * len(self.kept)

    def memory_reserved(self, device: int) -> int:
        assert self.initialized, "it would initialize the GPUs"
        return self.used[device] + self.kept[device]


def test_torch_tells_what_it_has_reserved_on_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that nothing uses are not counted: the next load would take them and seem to take nothing."""
    cuda = Cuda(used=[300 * MIB, 20 * MIB + 1], kept=[500 * MIB, 0])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert torch_reserved_mib() == 321


def test_torch_that_uses_no_gpu_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(used=[0], kept=[0])
    cuda.initialized = False
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert torch_reserved_mib() is None
    monkeypatch.delitem(sys.modules, "torch")
    assert torch_reserved_mib() is None


def test_the_process_measures_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the model whose load is the first to use the GPUs."""
    monkeypatch.delenv(GPU_MEMORY_MIB, raising=False)
    monkeypatch.setattr(model_cache, "_process_cache", None)
    cuda = Cuda(used=[0], kept=[0])
    cuda.initialized = False
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))

    def load(mib: int) -> None:
        cuda.initialized = True
        cuda.used[0] += mib * MIB

    with model_cache.use("a", lambda: load(70), size_mib=100), model_cache.use("b", lambda: load(30)):
        assert model_cache.loaded() == {"a": 70, "b": 30}


class Sleeper(Gpu):
    """Its models can sleep; of those in ``broken`` a turn fails."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()
        self.turns: list[tuple[str, str]] = []

    def turn(self, what: str, model: Model) -> None:
        self.clock.advance(0.5)
        self.turns.append((what, model.name))
        if model.name in self.broken:
            raise RuntimeError("no room on the host")

    def use(self, cache: ModelCache, name: str, size_mib: int = 400) -> Model:
        turns = {"sleep": partial(self.turn, "sleep"), "wake": partial(self.turn, "wake")}
        with cache.use(name, lambda: self.load(name), size_mib=size_mib, unload=self.unload, **turns) as model:
            return model


def test_a_cache_that_sleeps_takes_no_memory_and_goes_on_with_the_same_models() -> None:
    """What cannot sleep is unloaded, and so is what fails to; doing it again changes nothing."""
    gpu = Sleeper()
    gpu.broken = {"broken"}
    cache = cache_of(gpu, 2000)
    first = gpu.use(cache, "a")
    gpu.use(cache, "broken")
    use(cache, gpu, "plain")
    cache.sleep()
    cache.sleep()
    assert (cache.loaded(), cache.asleep()) == ({"a": 0}, {"a"})
    assert gpu.unloaded == ["broken", "plain"]
    assert gpu.turns == [("sleep", "a"), ("sleep", "broken")]

    assert gpu.use(cache, "a") is first
    assert (cache.loaded(), cache.asleep()) == ({"a": 400}, frozenset())
    assert gpu.made == ["a", "broken", "plain"]


def test_as_many_wake_as_fit_and_the_last_used_first() -> None:
    """The others wake when they are used, once the cache has made room."""
    gpu = Sleeper()
    cache = cache_of(gpu, 1000)
    for name in ("a", "b"):
        gpu.use(cache, name, 500)
    cache.sleep()
    gpu.use(cache, "c", 500)
    cache.wake()
    assert (cache.asleep(), gpu.turns[-1]) == ({"a"}, ("wake", "b"))
    gpu.use(cache, "a", 500)
    assert cache.asleep() == frozenset()
    assert sum(cache.loaded().values()) == 1000
    assert "a" not in gpu.unloaded


def test_a_model_that_does_not_wake_up_is_loaded_again() -> None:
    gpu = Sleeper()
    cache = cache_of(gpu)
    first = gpu.use(cache, "a")
    cache.sleep()
    gpu.broken = {"a"}
    cache.wake()
    assert (cache.loaded(), gpu.unloaded) == ({}, ["a"])
    assert gpu.use(cache, "a") is not first
    gpu.broken = set()
    cache.sleep()
    gpu.broken = {"a"}
    assert gpu.use(cache, "a").name == "a"
    assert gpu.made == ["a", "a", "a"]


def test_a_model_in_use_keeps_all_from_sleeping() -> None:
    gpu = Sleeper()
    cache = cache_of(gpu)
    gpu.use(cache, "b")
    with cache.use("a", lambda: gpu.load("a"), size_mib=400), pytest.raises(ModelInUse, match="'a' is in use"):
        cache.sleep()
    assert (cache.asleep(), gpu.unloaded, gpu.turns) == (frozenset(), [], [])


def test_a_model_that_wakes_costs_what_waking_took() -> None:
    """Loading it took longer than the other's, waking it less: now it is the one to go."""
    gpu = Sleeper()
    cache = cache_of(gpu, 1000)
    gpu.use(cache, "slow", 400)
    cache.sleep()
    gpu.use(cache, "slow", 400)
    for _ in range(2):
        use(cache, gpu, "other", 400, seconds=0.7)
    use(cache, gpu, "new", 400)
    assert gpu.unloaded == ["slow"]


def test_a_sleeping_model_that_no_longer_fits_is_refused() -> None:
    gpu = Sleeper()
    cache = cache_of(gpu, 1000)
    gpu.use(cache, "a", 700)
    cache.sleep()
    with cache.use("b", lambda: gpu.load("b"), size_mib=700), pytest.raises(ModelDoesNotFit, match="takes 700 MiB"):
        gpu.use(cache, "a", 700)
    assert cache.asleep() == {"a"}


def test_sleep_and_wake_come_together(cache: ModelCache, gpu: Gpu) -> None:
    with (
        pytest.raises(ValueError, match="both"),
        cache.use("a", lambda: gpu.load("a"), size_mib=1, sleep=lambda _: None),
    ):
        pass
    assert gpu.made == []
