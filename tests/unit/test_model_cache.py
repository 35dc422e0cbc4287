"""Models that stay loaded between jobs."""

import threading

import pytest

from orchestrator import model_cache
from orchestrator.errors import ModelDoesNotFit
from orchestrator.model_cache import GPU_MEMORY_MIB, ModelCache


class Loads:
    """Makes models and remembers which, and which were unloaded."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.unloaded: list[str] = []

    def of(self, name: str) -> "Loader":
        return Loader(self, name)


class Loader:
    def __init__(self, loads: Loads, name: str) -> None:
        self._loads, self._name = loads, name

    def __call__(self) -> str:
        self._loads.made.append(self._name)
        return f"model {self._name}"


def use(cache: ModelCache, loads: Loads, name: str, size_mib: int = 400) -> str:
    with cache.use(name, loads.of(name), size_mib=size_mib, unload=loads.unloaded.append) as model:
        return model


@pytest.fixture
def loads() -> Loads:
    return Loads()


def test_a_model_is_loaded_once(loads: Loads) -> None:
    cache = ModelCache(1000)
    assert [use(cache, loads, "a"), use(cache, loads, "a")] == ["model a", "model a"]
    assert loads.made == ["a"]
    assert cache.loaded() == {"a": 400}


def test_the_least_recently_used_makes_room(loads: Loads) -> None:
    cache = ModelCache(1000)
    for name in ("a", "b", "a", "c"):
        use(cache, loads, name)
    assert list(cache.loaded()) == ["a", "c"]
    assert loads.unloaded == ["model b"]


def test_as_many_make_room_as_needed_and_no_more(loads: Loads) -> None:
    cache = ModelCache(1000)
    for name in ("a", "b", "c", "d"):
        use(cache, loads, name, 250)
    use(cache, loads, "big", 500)
    assert list(cache.loaded()) == ["c", "d", "big"]


def test_a_model_in_use_is_never_unloaded(loads: Loads) -> None:
    cache = ModelCache(1000)
    with cache.use("a", loads.of("a"), size_mib=600) as model:
        use(cache, loads, "b", 400)
        with pytest.raises(ModelDoesNotFit, match=r"model 'c' takes 500 MiB; the lease has 1000.*in use take 600"):
            use(cache, loads, "c", 500)
        assert not cache.drop("a")
        assert model == "model a"
    assert "c" not in loads.made
    assert cache.drop("a")
    assert list(cache.loaded()) == ["b"]


def test_what_can_never_fit_unloads_nothing(loads: Loads) -> None:
    cache = ModelCache(1000)
    use(cache, loads, "a")
    with pytest.raises(ModelDoesNotFit, match=r"takes 1001 MiB; the lease has 1000$"):
        use(cache, loads, "huge", 1001)
    assert list(cache.loaded()) == ["a"]


def test_a_failed_load_leaves_nothing() -> None:
    cache = ModelCache(1000)

    def fail() -> object:
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"), cache.use("a", fail, size_mib=10):
        pass
    assert cache.loaded() == {}
    assert not cache.drop("a")


def test_a_block_that_raises_lets_go_of_its_model(loads: Loads) -> None:
    cache = ModelCache(1000)
    with pytest.raises(ZeroDivisionError), cache.use("a", loads.of("a"), size_mib=10):
        raise ZeroDivisionError
    assert cache.drop("a")


def test_a_negative_size_is_a_mistake(loads: Loads) -> None:
    with pytest.raises(ValueError, match="size_mib: -1"):
        use(ModelCache(None), loads, "a", -1)


def test_threads_load_a_model_once(loads: Loads) -> None:
    cache = ModelCache(None)
    threads = [threading.Thread(target=use, args=(cache, loads, "a")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert loads.made == ["a"]


def test_the_process_has_one_as_large_as_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPU_MEMORY_MIB, "300")
    monkeypatch.setattr(model_cache, "_process_cache", None)
    with model_cache.use("a", lambda: "model", size_mib=300) as model:
        assert model == "model"
    assert model_cache.loaded() == {"a": 300}
    assert model_cache.cache().capacity_mib == 300
    assert model_cache.drop("a")
