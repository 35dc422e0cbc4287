"""A user's app with tasks on a real GPU."""

import os
import time
from typing import Any

from celery import Celery

from orchestrator import current, model_cache
from orchestrator.install import install
from orchestrator.worker.gpu_task import GPUTask
from tests.gpu.use_cuda import Cuda

app = install(Celery("cuda_app", include=["orchestrator_tasks.command"]))


@app.task(base=GPUTask, name="g.opened", gpus=1)
def opened() -> dict[str, Any]:
    """Open the GPU, unless an earlier job of this runner has; say which it is and how long that took."""
    began = time.perf_counter()
    cuda = Cuda()
    seen = cuda.devices()
    cuda.open()
    cuda.allocate(64)
    return {"pid": os.getpid(), "seen": seen, "seconds": time.perf_counter() - began}


@app.task(base=GPUTask, name="g.load", gpus=1)
def load(model: str, mib: int) -> dict[str, Any]:
    """Load weights of a size; a tenth of it is promised, so that what counts is what was measured."""
    with model_cache.use(model, lambda: _weights(mib), size_mib=mib // 10, **_TURNS):
        return {"pid": os.getpid(), "loaded": model_cache.loaded()}


@app.task(base=GPUTask, name="g.ask", gpus=1)
def ask() -> dict[str, Any]:
    """Use the model that is loaded, and say what it has."""
    name = current().model
    assert name is not None
    was_loaded = name in model_cache.loaded() | dict.fromkeys(model_cache.asleep(), 0)
    with model_cache.use(name, lambda: _weights(0), size_mib=1, **_TURNS) as weights:
        told = {"device": str(weights.tensor.device), "sum": float(weights.tensor[:1024].sum())}
    return told | {"pid": os.getpid(), "was_loaded": was_loaded, "token": current().fencing_token}


class Weights:
    """A tensor that can lie on the GPU or in the host's memory."""

    def __init__(self, mib: int) -> None:
        import torch

        self.tensor = torch.ones(mib << 20, dtype=torch.uint8, device="cuda")

    def leave(self) -> None:
        """Be in the host's memory."""
        self.tensor = self.tensor.to("cpu")

    def come(self) -> None:
        """Be on the GPU."""
        self.tensor = self.tensor.to("cuda")


def _weights(mib: int) -> Weights:
    return Weights(mib)


_TURNS: dict[str, Any] = {"sleep": Weights.leave, "wake": Weights.come}
