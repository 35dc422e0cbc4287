"""A user's app with a model that takes a while to load, and tasks that use it."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import Celery

from orchestrator import current, model_cache
from orchestrator.gpus.simulated_use import set_use
from orchestrator.install import install
from orchestrator.worker.gpu_task import GPUTask

CONTEXT_MIB = 400

app = install(Celery("pools_app", include=["orchestrator_tasks.command"]))
app.conf.beat_schedule = {"tick": {"task": "p.tick", "schedule": timedelta(seconds=2)}}


@app.task(base=GPUTask, name="p.load", gpus=1)
def load(model: str, seconds: float = 0.0, broken: str | None = None) -> dict[str, Any]:
    """Load a model; not while the file ``broken`` is there."""
    if broken is not None and Path(broken).exists():
        raise RuntimeError(f"the weights of {model} cannot be read")
    with model_cache.use(model, lambda: _load(model, seconds), size_mib=10):
        return {"pid": os.getpid()}


@app.task(base=GPUTask, name="p.ask", gpus=1)
def ask(seconds: float = 0.0, begun: str | None = None) -> dict[str, Any]:
    """Use the model, and say who did; the file ``begun`` is made first."""
    if begun is not None:
        Path(begun).touch()
    context = current()
    model = context.model or "none"
    was_loaded = model in model_cache.loaded()
    with model_cache.use(model, lambda: _load(model, 0.0), size_mib=10) as loaded:
        time.sleep(seconds)
        told = {"pid": os.getpid(), "model": loaded["name"], "was_loaded": was_loaded}
    return told | {"gpus": list(context.gpus), "token": context.fencing_token}


class OnGpu(dict[str, Any]):
    """A model that uses memory of its simulated GPU, and little of it while it sleeps."""

    def __init__(self, name: str, cards: str, mib: int) -> None:
        super().__init__(name=name)
        self._cards, self._mib, self._gpus = Path(cards), mib, current().gpus
        self.come()

    def come(self) -> None:
        """Be on the GPU."""
        set_use(self._cards, dict.fromkeys(self._gpus, self._mib))

    def leave(self) -> None:
        """Be in the host's memory, but for the driver's context."""
        set_use(self._cards, dict.fromkeys(self._gpus, CONTEXT_MIB))


@app.task(base=GPUTask, name="p.load_on_gpu", gpus=1)
def load_on_gpu(model: str, cards: str, mib: int) -> None:
    """Load a model that can sleep."""
    with model_cache.use(model, lambda: OnGpu(model, cards, mib), size_mib=mib, sleep=OnGpu.leave, wake=OnGpu.come):
        pass


@app.task(base=GPUTask, name="p.tick", gpus=0)
def tick() -> str:
    """Do what a schedule asks for."""
    return "tock"


@app.task(base=GPUTask, name="p.die", gpus=1)
def die() -> None:
    """Take the runner along."""
    os.kill(os.getpid(), signal.SIGKILL)


def _load(model: str, seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {"name": model}
