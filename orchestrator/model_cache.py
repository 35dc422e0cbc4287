"""Models that stay loaded in a warm runner from one job to the next: ``orchestrator.model_cache``.

    from orchestrator import model_cache

    with model_cache.use("resnet50", load=load_resnet, size_mib=1200) as model:
        return model(images)

A runner serves jobs of one tenant on one set of GPUs, so what the first job loads, the next ones find. The cache holds
as much as the runner's lease has memory for. To load one more model it unloads those that nobody uses just now, lowest
(seconds that its load took × uses per second) first: ``orchestrator.scheduling.evictions``. Room is made for the size
that is promised; once a model is loaded, what was measured counts instead, where something can be measured.
"""

import gc
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from orchestrator.errors import ModelDoesNotFit, ModelInUse
from orchestrator.scheduling.evictions import Hits, LoadedModel, choose_victims

logger = logging.getLogger(__name__)

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
    sleep: Callable[[Any], None] | None
    wake: Callable[[Any], None] | None
    load_seconds: float = 0.0  # or that it took to wake, if it did so since
    users: int = 0
    awake_mib: int | None = None  # its size when it is awake, while it sleeps


def torch_reserved_mib() -> int | None:
    """Return what torch has reserved on all visible GPUs in MiB, once unused blocks are given back; None without it.

    It is not asked before somebody has imported it and made it use a GPU, which costs seconds and memory. The CUDA
    context is not in it, nor what anything but torch's allocator takes.
    """
    torch = _torch_on_gpus()
    if torch is None:
        return None
    _give_back()
    reserved: int = sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))
    return -(-reserved // 2**20)


class ModelCache:
    """Loaded models by name, least recently used first; safe to use from several threads."""

    def __init__(
        self,
        capacity_mib: int | None,
        *,
        measure: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make it empty.

        Args:
            capacity_mib: What the sizes of all models may come to; None for no bound.
            measure: Tells how much memory this process uses on its GPUs, in MiB; None for as long as nothing can tell.
                What it tells after a load and could not tell before has come with that load.
            clock: Tells seconds that never run backwards.
        """
        self.capacity_mib = capacity_mib
        self._measure, self._clock = measure, clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._hits: dict[str, Hits] = {}  # also of models that had to go, so that one which comes back is not new
        self._lock = threading.RLock()

    @contextmanager
    def use(
        self,
        name: str,
        load: Callable[[], Model],
        *,
        size_mib: int | None = None,
        unload: Callable[[Model], None] | None = None,
        sleep: Callable[[Model], None] | None = None,
        wake: Callable[[Model], None] | None = None,
    ) -> Iterator[Model]:
        """Give the model of this name, loaded by ``load`` if it is not there; it stays loaded for the whole block.

        Args:
            name: Of the model, with its version: the same name is the same model.
            load: Makes it; whatever it raises goes through, and nothing is kept.
            size_mib: Memory that it is promised to take on the GPUs, in MiB: room for so much is made before the load,
                and it counts until more than 0 MiB have been measured. None: room is made after the load.
            unload: Frees what dropping the last reference does not.
            sleep: Moves it to the host's memory; a model without is unloaded when the cache is put to sleep.
            wake: Brings it back.

        Raises:
            ModelDoesNotFit: If it is larger than the lease, or than what models in use leave; if only the load has
                shown that, it is unloaded again.
            ValueError: If no size is given, and nothing can be measured before the load; or only one of ``sleep`` and
                ``wake`` is given.
        """
        if (sleep is None) != (wake is None):
            raise ValueError("sleep and wake: give both, or neither")
        entry = self._enter(name, size_mib, lambda: _Entry(load(), size_mib or 0, unload, sleep, wake))
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
        """Return the loaded models and their sizes in MiB, measured where they could be; least recently used first."""
        with self._lock:
            return {name: entry.size_mib for name, entry in self._entries.items()}

    def asleep(self) -> frozenset[str]:
        """Return the models that sleep."""
        with self._lock:
            return frozenset(name for name, entry in self._entries.items() if entry.awake_mib is not None)

    def sleep(self) -> None:
        """Give all memory of the GPUs back: models that can sleep do, and the others are unloaded.

        A model whose ``sleep`` fails is unloaded too.

        Raises:
            ModelInUse: If one is used; then nothing has been done.
        """
        with self._lock:
            used = [name for name, entry in self._entries.items() if entry.users]
            if used:
                raise ModelInUse(f"model {used[0]!r} is in use")
            for name, entry in list(self._entries.items()):
                if entry.awake_mib is None and not (entry.sleep and _succeeds(name, "sleep", entry.sleep, entry.model)):
                    self._unload(name)
                elif entry.awake_mib is None:
                    entry.awake_mib, entry.size_mib = entry.size_mib, 0
            _give_back()

    def wake(self) -> None:
        """Wake the models that sleep and fit, most recently used first; the others wake up when they are used."""
        with self._lock:
            for name, entry in reversed(list(self._entries.items())):
                if entry.awake_mib is None:
                    continue
                if self.capacity_mib is None or self._held_mib() + entry.awake_mib <= self.capacity_mib:
                    self._wake(name, entry, entry.awake_mib)

    def _enter(self, name: str, size_mib: int | None, load: Callable[[], _Entry]) -> _Entry:
        if size_mib is not None and size_mib < 0:
            raise ValueError(f"size_mib: {size_mib} is less than 0")
        with self._lock:  # also while it loads: two threads must not load the same model, or together too much
            there = self._entries.get(name)
            if there is not None and there.awake_mib is not None:
                if not self._make_room(name, there.awake_mib):
                    raise self._refusal(name, f"{there.awake_mib} MiB")
                self._wake(name, there, there.awake_mib)
            if name not in self._entries:
                self._load(name, size_mib, load)
            self._entries.move_to_end(name)
            self._hits[name] = self._hits.get(name, Hits()).with_use(self._clock())
            entry = self._entries[name]
            entry.users += 1
            return entry

    def _wake(self, name: str, entry: _Entry, size_mib: int) -> None:
        """Wake a model; one that cannot wake up is unloaded, so that its next use loads it again."""
        started = self._clock()
        if entry.wake is None or not _succeeds(name, "wake up", entry.wake, entry.model):
            self._unload(name)
            return
        entry.size_mib, entry.awake_mib = size_mib, None
        entry.load_seconds = self._clock() - started

    def _load(self, name: str, size_mib: int | None, load: Callable[[], _Entry]) -> None:
        """Load a model and make room for it: before, for what is promised, and after, for what was measured."""
        if size_mib is not None and not self._make_room(name, size_mib):
            raise self._refusal(name, f"{size_mib} MiB")
        before_mib, others_mib = self._measure(), self._held_mib()
        if size_mib is None and before_mib is None:
            raise ValueError(f"size_mib: nothing can tell how much memory model {name!r} will take; give its size")
        started = self._clock()
        # The model is in no variable: a traceback of what is raised below would keep it.
        self._entries[name] = load()
        self._entries[name].load_seconds = self._clock() - started
        measured = self._weigh(name, before_mib, others_mib)
        self._forget_uses()
        if not self._make_room(name, 0):
            promised = "no size" if size_mib is None else f"{size_mib} MiB"
            took = promised if measured is None else f"{measured} MiB, measured ({promised} promised)"
            refusal = self._refusal(name, took)
            self._unload(name)
            raise refusal

    def _weigh(self, name: str, before_mib: int | None, others_mib: int) -> int | None:
        """Give a model that was just loaded the size that it was measured to have; None if that tells nothing.

        Args:
            name: Of the model.
            before_mib: What was measured before the load.
            others_mib: What the other models took before the load.
        """
        after_mib = self._measure()
        if after_mib is None:
            return None
        entry = self._entries[name]
        nested_mib = self._held_mib() - entry.size_mib - others_mib  # ``load`` may itself use models of the cache
        grown_mib = after_mib - (before_mib or 0) - nested_mib
        if grown_mib <= 0:
            return None
        entry.size_mib = grown_mib
        return grown_mib

    def _make_room(self, name: str, size_mib: int) -> bool:
        """Unload other models until so much more fits; if it cannot be made to, unload none and return False."""
        if self.capacity_mib is None:
            return True
        now = self._clock()
        models = [
            LoadedModel(
                other,
                entry.size_mib,
                score=entry.load_seconds * self._hits.get(other, Hits()).rate_at(now),
                in_use=entry.users > 0 or other == name,
            )
            for other, entry in self._entries.items()
        ]
        victims = choose_victims(models, self._held_mib() + size_mib - self.capacity_mib)
        for victim in victims or ():
            self._unload(victim)
        return victims is not None

    def _held_mib(self) -> int:
        return sum(entry.size_mib for entry in self._entries.values())

    def _refusal(self, name: str, takes: str) -> ModelDoesNotFit:
        in_use = sum(entry.size_mib for entry in self._entries.values() if entry.users)
        used = f", of which models in use take {in_use}" if in_use else ""
        return ModelDoesNotFit(f"model {name!r} takes {takes}; the lease has {self.capacity_mib}{used}")

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


def _succeeds(name: str, what: str, turn: Callable[[Any], None], model: object) -> bool:
    """Call user code; tell whether it did not raise."""
    try:
        turn(model)
    except Exception as error:  # noqa: BLE001 - whatever it is
        logger.warning("model %r cannot %s, and is unloaded: %s: %s", name, what, type(error).__name__, error)
        return False
    return True


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
            _process_cache = ModelCache(int(told) if told else None, measure=torch_reserved_mib)
        return _process_cache


def use(
    name: str,
    load: Callable[[], Model],
    *,
    size_mib: int | None = None,
    unload: Callable[[Model], None] | None = None,
    sleep: Callable[[Model], None] | None = None,
    wake: Callable[[Model], None] | None = None,
) -> AbstractContextManager[Model]:
    """Give a model of this process's cache for the length of a ``with`` block; see ``ModelCache.use``."""
    return cache().use(name, load, size_mib=size_mib, unload=unload, sleep=sleep, wake=wake)


def drop(name: str) -> bool:
    """Unload a model of this process's cache; False if it is not loaded, or in use."""
    return cache().drop(name)


def loaded() -> Mapping[str, int]:
    """Return what this process has loaded, with sizes in MiB, least recently used first."""
    return cache().loaded()


def asleep() -> frozenset[str]:
    """Return the models of this process's cache that sleep."""
    return cache().asleep()


def sleep() -> None:
    """Put this process's models to sleep; see ``ModelCache.sleep``."""
    cache().sleep()


def wake() -> None:
    """Wake this process's models; see ``ModelCache.wake``."""
    cache().wake()
