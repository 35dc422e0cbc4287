"""Models that stay loaded in a warm runner from one job to the next: ``orchestrator.model_cache``.

    from orchestrator import model_cache

    with model_cache.use("resnet50", load=load_resnet, size_mib=1200) as model:
        return model(images)

A runner serves jobs of one tenant on one set of GPUs, so what the first job loads, the next ones find. The cache holds
as much as the runner's lease has memory for. To load one more model it unloads those that nobody uses just now, lowest
(seconds that its load took × uses per second) first: ``orchestrator.scheduling.evictions``. It believes
the sizes that it is told: it measures nothing.
"""

import gc
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from orchestrator.errors import ModelDoesNotFit
from orchestrator.scheduling.evictions import Hits, LoadedModel, choose_victims

Model = TypeVar("Model")

#: What a runner's lease gives it of its GPUs' memory; without it the cache is unbounded.
GPU_MEMORY_MIB: Final = "ORCHESTRATOR_GPU_MEMORY_MIB"
#: Uses of a model that is not loaded are remembered while they count so much.
_REMEMBERED: Final = 0.05


@dataclass(slots=True)
class _Entry:
    model: object
    size_mib: int
    unload: Callable[[Any], None] | None
    load_seconds: float = 0.0
    users: int = 0


class ModelCache:
    """Loaded models by name, least recently used first; safe to use from several threads."""

    def __init__(
        self,
        capacity_mib: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make it empty.

        Args:
            capacity_mib: What the sizes of all models may come to; None for no bound.
            clock: Tells seconds that never run backwards.
        """
        self.capacity_mib = capacity_mib
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._hits: dict[str, Hits] = {}  # also of models that had to go, so that one which comes back is not new
        self._lock = threading.RLock()

    @contextmanager
    def use(
        self,
        name: str,
        load: Callable[[], Model],
        *,
        size_mib: int,
        unload: Callable[[Model], None] | None = None,
    ) -> Iterator[Model]:
        """Give the model of this name, loaded by ``load`` if it is not there; it stays loaded for the whole block.

        Args:
            name: Of the model, with its version: the same name is the same model.
            load: Makes it; whatever it raises goes through, and nothing is kept.
            size_mib: Memory that it takes on the GPUs, in MiB.
            unload: Frees what dropping the last reference does not.

        Raises:
            ModelDoesNotFit: If it is larger than the lease, or than what models in use leave.
        """
        entry = self._enter(name, load, size_mib, unload)
        try:
            yield cast(Model, entry.model)
        finally:
            with self._lock:
                entry.users -= 1

    def drop(self, name: str) -> bool:
        """Unload a model; False if it is not loaded, or in use."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry.users:
                return False
            self._unload(name)
            return True

    def loaded(self) -> Mapping[str, int]:
        """Return the loaded models and their sizes in MiB, least recently used first."""
        with self._lock:
            return {name: entry.size_mib for name, entry in self._entries.items()}

    def _enter(
        self, name: str, load: Callable[[], object], size_mib: int, unload: Callable[[Any], None] | None
    ) -> _Entry:
        if size_mib < 0:
            raise ValueError(f"size_mib: {size_mib} is less than 0")
        with self._lock:  # also while it loads: two threads must not load the same model, or together too much
            if name not in self._entries:
                self._load(name, load, size_mib, unload)
            self._entries.move_to_end(name)
            self._hits[name] = self._hits.get(name, Hits()).with_use(self._clock())
            entry = self._entries[name]
            entry.users += 1
            return entry

    def _load(self, name: str, load: Callable[[], object], size_mib: int, unload: Callable[[Any], None] | None) -> None:
        if not self._make_room(size_mib):
            in_use = sum(entry.size_mib for entry in self._entries.values() if entry.users)
            used = f", of which models in use take {in_use}" if in_use else ""
            raise ModelDoesNotFit(f"model {name!r} takes {size_mib} MiB; the lease has {self.capacity_mib}{used}")
        started = self._clock()
        self._entries[name] = _Entry(load(), size_mib, unload)
        self._entries[name].load_seconds = self._clock() - started
        self._forget_uses()

    def _make_room(self, size_mib: int) -> bool:
        """Unload other models until so much more fits; if it cannot be made to, unload none and return False."""
        if self.capacity_mib is None:
            return True
        now = self._clock()
        models = [
            LoadedModel(
                name,
                entry.size_mib,
                score=entry.load_seconds * self._hits.get(name, Hits()).rate_at(now),
                in_use=entry.users > 0,
            )
            for name, entry in self._entries.items()
        ]
        victims = choose_victims(models, sum(model.size_mib for model in models) + size_mib - self.capacity_mib)
        for victim in victims or ():
            self._unload(victim)
        return victims is not None

    def _forget_uses(self) -> None:
        """Forget models that have been gone for long: names may have no end."""
        now = self._clock()
        gone = [name for name, hits in self._hits.items() if hits.count_at(now) < _REMEMBERED]
        for name in gone:
            if name not in self._entries:
                del self._hits[name]

    def _unload(self, name: str) -> None:
        entry = self._entries.pop(name)
        if entry.unload is not None:
            entry.unload(entry.model)
        del entry
        _give_back()


def _give_back() -> None:
    """Give back to the GPUs what nothing refers to any more."""
    gc.collect()  # models are full of reference cycles
    torch = _torch_on_gpus()
    if torch is not None:
        torch.cuda.empty_cache()


def _torch_on_gpus() -> Any:
    """Return torch if it uses GPUs in this process, else None; whoever uses it has imported it."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


_process_cache: ModelCache | None = None
_process_lock = threading.Lock()


def cache() -> ModelCache:
    """Return this process's cache, as large as its lease's memory."""
    global _process_cache  # noqa: PLW0603 - one a process
    with _process_lock:
        if _process_cache is None:
            told = os.environ.get(GPU_MEMORY_MIB)
            _process_cache = ModelCache(int(told) if told else None)
        return _process_cache


def use(
    name: str,
    load: Callable[[], Model],
    *,
    size_mib: int,
    unload: Callable[[Model], None] | None = None,
) -> AbstractContextManager[Model]:
    """Give a model of this process's cache for the length of a ``with`` block; see ``ModelCache.use``."""
    return cache().use(name, load, size_mib=size_mib, unload=unload)


def drop(name: str) -> bool:
    """Unload a model of this process's cache; False if it is not loaded, or in use."""
    return cache().drop(name)


def loaded() -> Mapping[str, int]:
    """Return what this process has loaded, with sizes in MiB, least recently used first."""
    return cache().loaded()
