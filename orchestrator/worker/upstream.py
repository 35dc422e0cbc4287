"""Plain tasks of a canvas that do not end well: the jobs that wait for them are told.

A job's own end tells those behind it in the transaction that ends it. Nobody records a plain task, so the processes
that see it end say so: the pool's child when it raises, the worker when it is lost, ran too long, was revoked or is
unknown.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from celery import Celery, signals

from orchestrator.errors import StoreUnavailable
from orchestrator.worker.gpu_task import GPUTask

logger = logging.getLogger(__name__)

#: Most characters of an error in the reason of what waited for it.
LONGEST_ERROR: Final = 200


def follow_plain_tasks(app: Celery) -> None:
    """Have the ends of this app's plain tasks heeded."""

    def on_failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
        if not _concerns(app, sender, task_id):
            return
        error = f"{type(exception).__name__}: {exception}"
        _tell(app, task_id, f"failed: {error[:LONGEST_ERROR]}")

    def on_revoked(sender: Any = None, request: Any = None, expired: bool = False, **_: Any) -> None:
        if _concerns(app, sender, request.id):
            _tell(app, request.id, "expired before it started" if expired else "was revoked")

    def on_unknown(sender: Any = None, name: str = "", id: str = "", **_: Any) -> None:
        if sender is not None and getattr(sender, "app", None) is app:
            _tell(app, id, f"is a task {name!r} that its worker does not know")

    kept: tuple[tuple[Any, Callable[..., None]], ...] = (
        (signals.task_failure, on_failure),
        (signals.task_revoked, on_revoked),
        (signals.task_unknown, on_unknown),
    )
    for signal, handler in kept:
        signal.connect(handler, weak=False)


def _concerns(app: Celery, task: Any, task_id: str) -> bool:
    """A plain task of this app ended, and something may follow it."""
    if getattr(task, "app", None) is not app or isinstance(task, GPUTask):
        return False
    request = task.request
    if request.id != task_id:
        return True  # told by the worker, who does not know what follows
    return bool(request.chain or request.chord or request.callbacks)


def _tell(app: Celery, task_id: str, words: str) -> None:
    try:
        ended = app.orchestrator_runtime().jobs.end_dependents([task_id], words)
    except StoreUnavailable as error:
        logger.error("the jobs that wait for task %s go on waiting, the database does not answer: %s", task_id, error)
        return
    if ended:
        logger.info("%d jobs do not start: they needed task %s, which %s", ended, task_id, words)
