"""A user's app with jobs and plain tasks for canvases."""

import time
from pathlib import Path
from typing import Any

from celery import Celery, chain

from orchestrator.install import install
from orchestrator.worker.gpu_task import GPUTask

app = install(Celery("canvas_app", include=["orchestrator_tasks.command"]))


@app.task(base=GPUTask, name="c.add", gpus=0)
def add(left: int, right: int) -> int:
    return left + right


@app.task(base=GPUTask, name="c.total", gpus=0)
def total(values: list[int]) -> int:
    return sum(values)


@app.task(base=GPUTask, name="c.fail", gpus=0)
def fail(*_args: Any) -> None:
    raise ValueError("no luck")


@app.task(base=GPUTask, name="c.second_try", gpus=0, max_attempts=2)
def second_try(file: str) -> int:
    with Path(file).open("a") as tries:
        tries.write(".")
    if len(Path(file).read_text()) < 2:
        raise ValueError("not yet")
    return 5


@app.task(base=GPUTask, name="c.nap", gpus=1)
def nap(_before: Any, seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task(base=GPUTask, name="c.too_long", gpus=0, time_limit=1)
def too_long(*_args: Any) -> None:
    time.sleep(60)


@app.task(base=GPUTask, name="c.note_job", gpus=0)
def note_job(*args: Any) -> None:
    *_, file = args
    with Path(file).open("a") as notes:
        notes.write("job\n")


@app.task(base=GPUTask, name="c.becomes", gpus=0, bind=True)
def becomes(self: Any, what: str) -> Any:
    """Be replaced by something else."""
    replacements = {
        "a job": add.s(1, 2),
        "a plain task": plain_nap.s(0, 0.5),
        "a canvas": chain(plain_add.s(1, 1), add.s(1)),
    }
    return self.replace(replacements[what])


@app.task(name="c.plain_add")
def plain_add(left: int, right: int) -> int:
    return left + right


@app.task(name="c.plain_fail")
def plain_fail(*_args: Any) -> None:
    raise ValueError("plain bad luck")


@app.task(name="c.plain_nap")
def plain_nap(_before: Any, seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@app.task(name="c.mourn")
def mourn(file: str) -> None:
    """Be an errback: Celery publishes those that take one argument, and calls others where the task failed."""
    with Path(file).open("a") as notes:
        notes.write("plain\n")


@app.task(base=GPUTask, name="c.mourn_job", gpus=0)
def mourn_job(file: str) -> None:
    with Path(file).open("a") as notes:
        notes.write("job\n")
