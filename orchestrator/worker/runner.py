"""The inside of a runner: a process that runs Celery tasks one after another, on the GPUs it was started with.

It is forked from a process that has imported the app but never touched CUDA, and ``CUDA_VISIBLE_DEVICES`` was set
before the fork's first instruction here. It takes one message at a time, and takes it only when it is ready to start
that job: what still lies in the socket can be taken back by the worker.
"""

import base64
import importlib
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Final

from celery import states
from celery.app import trace
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from kombu.utils.json import loads as revive

from orchestrator import job_context, model_cache
from orchestrator.job_context import ATTEMPT, CHECKPOINT, FENCING_TOKEN, JOB_ID, JobContext, visible_gpus
from orchestrator.worker import frames, resubmission, task_log
from orchestrator.worker.results import REPLACED, capture_results_of

#: Names the app (``module:attribute``) and the worker's node name to the runner.
APP: Final = "ORCHESTRATOR_RUNNER_APP"
HOSTNAME: Final = "ORCHESTRATOR_RUNNER_HOSTNAME"

#: What a worker may ask for besides work.
_TURNS: Final[dict[str, Callable[[], None]]] = {"sleep": model_cache.sleep, "wake": model_cache.wake}

_running = False


def main(spec: Mapping[str, Any], channel: socket.socket) -> None:
    """Run what the worker sends until it closes the socket; called in a fresh fork."""
    app = load_app(os.environ[APP])
    hostname = os.environ.get(HOSTNAME, "")
    signal.signal(signal.SIGUSR1, _raise_soft_time_limit)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    relay = task_log.set_up(app, hostname, os.environ)
    _prepare(app, hostname)
    while (message := frames.receive(channel, _loads, wait=True)) is not None:
        turn = _TURNS.get(message["op"])
        frames.send(channel, _run(message, channel, relay) if turn is None else _turn(message["op"], turn))


def load_app(path: str) -> Any:
    """Import the Celery app named ``module:attribute``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute or "app")


def _turn(to: str, turn: Callable[[], None]) -> dict[str, Any]:
    """Put the models to sleep or wake them; what user code raises is the worker's to know."""
    try:
        turn()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return {"op": "turned", "to": to, "error": f"{type(error).__name__}: {error}"}
    return {"op": "turned", "to": to}


def _loads(data: bytes) -> Any:
    """Decode a message; dates, UUIDs and the like of a task's arguments are marked as kombu marks them."""
    return revive(data) if b'"__type__"' in data else json.loads(data)


def _prepare(app: Any, hostname: str) -> None:
    """Do what Celery's own pool children do at their start."""
    app.loader.init_worker()
    app.loader.init_worker_process()
    trace.setup_worker_optimizations(app, hostname)
    from celery import signals

    for name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(name, task, app.loader, hostname, app=app)
    signals.worker_process_init.send(sender=None)


def _raise_soft_time_limit(_signum: int, _frame: FrameType | None) -> None:
    if _running:
        raise SoftTimeLimitExceeded


def _run(message: dict[str, Any], channel: socket.socket, relay: task_log.TracerRelay) -> dict[str, Any]:
    global _running  # noqa: PLW0603 - the signal handler asks whether a task is there to be interrupted
    job = message.get("job")
    _mark_output(message["mark"])
    capture = _enter_job(message, job, channel) if job else None
    relay.begin(is_job=bool(job))
    started_at = time.time()
    try:
        _running = True
        failed, value, runtime = _trace(message)
    except SoftTimeLimitExceeded as error:  # between the tracer's own handlers
        failed, value, runtime = 1, trace.ExceptionInfo((type(error), error, error.__traceback__)), 0.0
    finally:
        _running = False
    report = {"op": "done", "id": message["id"], "started_at": started_at, "ended_at": time.time(), "runtime": runtime}
    report |= _failure(value) if failed else {"state": states.SUCCESS, "repr": value}
    if capture is None:
        report[task_log.FIELD] = relay.take()
    else:
        value = REPLACED if resubmission.is_replaced() else capture.value
        report |= {"meta": capture.meta, "value": value, "resubmission": resubmission.take()}
        report["rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        capture_results_of(None)
        job_context.enter(None)
    sys.stdout.flush()
    sys.stderr.flush()
    return report


def _mark_output(mark: str) -> None:
    """Tell the reader of the output pipe that what follows belongs to the next job."""
    os.write(1, mark.encode())


def _enter_job(message: dict[str, Any], job: dict[str, Any], channel: socket.socket) -> Any:
    os.environ[JOB_ID] = message["id"]
    os.environ[ATTEMPT] = str(job["attempt"])
    os.environ[FENCING_TOKEN] = str(job["token"])
    os.environ.pop(CHECKPOINT, None)
    if job.get("checkpoint"):
        os.environ[CHECKPOINT] = job["checkpoint"]

    def send(report: Mapping[str, Any]) -> None:
        frames.send(channel, dict(report))

    gpus = visible_gpus(os.environ)
    told = (job.get("checkpoint"), job.get("model"))
    context = JobContext(message["id"], job["attempt"], job["token"], gpus, send, *told)
    job_context.enter(context)
    resubmission.expect(message["id"])
    return capture_results_of(message["id"], final=frozenset(job["final"]) if "final" in job else None)


def _trace(message: dict[str, Any]) -> tuple[int, Any, float]:
    if message.get("job"):
        body: Any = (message["args"], message["kwargs"], message["embed"])
        content_type = encoding = None
    else:
        body, content_type, encoding = message["body"], message["content_type"], message["content_encoding"]
        if message.get("base64"):
            body = base64.b64decode(body)
    outcome: tuple[int, Any, float] = trace.fast_trace_task(
        message["task"], message["id"], message["request"], body, content_type, encoding
    )
    return outcome


def _failure(info: Any) -> dict[str, Any]:
    """Describe an exception without pickling it: the worker must not load what user code made."""
    error = info.exception
    error = getattr(error, "exc", error) if type(error).__name__ == "ExceptionWithTraceback" else error
    described = {
        "error_type": type(error).__name__,
        "error_module": type(error).__module__,
        "error": str(error),
        "traceback": str(info.traceback),
    }
    if isinstance(error, Retry):
        return described | {"state": states.RETRY, "error": str(error.exc or error.message or "retry")}
    if isinstance(error, Reject):
        return described | {"state": states.REJECTED, "requeue": bool(error.requeue)}
    if isinstance(error, Ignore):
        return described | {"state": states.IGNORED}
    return described | {"state": states.FAILURE}
