"""A user's app: GPU tasks and plain tasks of every temper."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

from orchestrator import current, model_cache
from orchestrator.gpus import simulated_use
from orchestrator.install import install
from orchestrator.testing.runner_dump import dumping
from orchestrator.worker.gpu_task import GPUTask

app = install(Celery("tasks_app", include=["orchestrator_tasks.command"]))
logger = get_task_logger(__name__)


@app.task(base=GPUTask, name="t.echo", gpus=1)
def echo(value: Any = None) -> Any:
    return value


@app.task(base=GPUTask, name="t.add", gpus=0)
def add(left: int, right: int) -> int:
    return left + right


@app.task(base=GPUTask, name="t.total", gpus=0)
def total(values: list[int]) -> int:
    return sum(values)


@app.task(base=GPUTask, name="t.count", gpus=1)
def count(*values: Any, **named: Any) -> int:
    return len(values) + len(named)


@app.task(base=GPUTask, name="t.fail", gpus=1)
def fail(text: str) -> None:
    raise ValueError(text)


@app.task(base=GPUTask, name="t.flaky", gpus=1, bind=True, max_retries=3)
def flaky(self: Any, file: str) -> str:
    tries = int(Path(file).read_text() or 0) + 1 if Path(file).exists() else 1
    Path(file).write_text(str(tries))
    if tries < 3:
        raise self.retry(countdown=0.2, exc=RuntimeError(f"try {tries}"))
    return f"{tries} tries, retries {self.request.retries}, attempt {current().attempt}"


@app.task(base=GPUTask, name="t.nap", gpus=1)
def nap(seconds: float) -> str:
    print("napping", os.getpid(), flush=True)
    time.sleep(seconds)
    return "rested"


@app.task(base=GPUTask, name="t.dumped", gpus=1)
def dumped(seconds: float) -> None:
    """Write down which GPU it saw, and when, to the file that the worker's environment names."""
    context = current()
    with dumping(job=context.job_id, attempt=context.attempt, token=context.fencing_token, gpus=context.gpus):
        time.sleep(seconds)


@app.task(base=GPUTask, name="t.polite", gpus=1, soft_time_limit=1, time_limit=20)
def polite() -> str:
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "stopped when asked"
    return "not asked"


@app.task(base=GPUTask, name="t.rude", gpus=1, time_limit=1)
def rude() -> None:
    time.sleep(60)


@app.task(base=GPUTask, name="t.die", gpus=1)
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=GPUTask, name="t.seen", gpus=2, bind=True)
def seen(self: Any) -> dict[str, Any]:
    current().progress(1, 2, "half way")
    return {
        "gpus": list(current().gpus),
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "token": current().fencing_token,
        "id": self.request.id,
        "pid": os.getpid(),
    }


@app.task(base=GPUTask, name="t.warm", gpus=1)
def warm() -> dict[str, Any]:
    with model_cache.use("model", lambda: {"uses": 0}, size_mib=100) as model:
        model["uses"] += 1
        time.sleep(0.03)  # a few jobs wait in the line, and the worker hears of each before the next but one begins
        return {"pid": os.getpid(), "uses": model["uses"], "memory_mib": model_cache.cache().capacity_mib}


@app.task(base=GPUTask, name="t.run", gpus=1)
def run(*argv: str) -> int:
    """Run a program, and not care about a wish to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return subprocess.run(argv, check=False).returncode


@app.task(base=GPUTask, name="t.use", gpus=1)
def use(file: str, mib: int) -> int:
    """Use so much of the simulated GPUs for as long as the runner lives."""
    simulated_use.set_use(Path(file), dict.fromkeys(os.environ["CUDA_VISIBLE_DEVICES"].split(","), mib))
    return os.getpid()


@app.task(name="t.plain")
def plain(value: Any) -> Any:
    return value


@app.task(name="t.plain_nap")
def plain_nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"


@app.task(name="t.plain_fail")
def plain_fail(text: str) -> None:
    raise ValueError(text)


@app.task(name="t.talk")
def talk(text: str) -> str:
    print("printed", text)
    logger.info("logged %s", text)
    return text


@app.task(base=GPUTask, name="t.talk_on_gpu", gpus=1)
def talk_on_gpu(text: str) -> str:
    print("printed", text)
    logger.info("logged %s", text)
    return text


@app.task(base=GPUTask, name="t.get_ready", gpus=1)
def get_ready(seconds: float) -> None:
    """Load for a while, then do nothing."""
    with current().loading():
        time.sleep(seconds)
    print("ready", flush=True)
    time.sleep(60)


@app.task(base=GPUTask, name="t.told", gpus=1)
def told(*argv: str) -> str:
    """Return what a program printed that the task started."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


@app.task(base=GPUTask, name="t.steps", gpus=1, max_attempts=9)
def steps(count: int) -> list[str | None]:
    """Do a step an attempt, and tell what each attempt was told."""
    job = current()
    file = Path(os.environ["ORCHESTRATOR_HOME"]) / f"{job.job_id}.steps"
    seen = [*json.loads(file.read_text() if file.exists() else "[]"), job.last_checkpoint]
    file.write_text(json.dumps(seen))
    job.checkpoint(f"step {len(seen) - 1}")
    if len(seen) < count:
        raise RuntimeError("one step is done")
    return seen
