"""What a runner logs: relayed to the worker's log for plain tasks, kept with the output of jobs."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from celery.app import trace

from orchestrator.worker.task_log import FIELD, TracerRelay, log_again, write_through

TRACER = logging.getLogger("celery.app.trace")
SUCCESS = {"id": "1", "name": "t", "return_value": "3", "runtime": 0.1, "args": "()", "kwargs": "{}"}
FAILURE = SUCCESS | {"description": "raised", "exc": "ValueError('no')", "hostname": "h", "internal": False}


class Kept(logging.Handler):
    """Keeps what reaches the root of the loggers, as the worker's log or a runner's output would."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    made, root = Kept(), logging.getLogger()
    level = root.level
    root.addHandler(made)
    root.setLevel(logging.INFO)
    yield made
    root.removeHandler(made)
    root.setLevel(level)


@pytest.fixture
def relay() -> Iterator[TracerRelay]:
    """The runner's side: the tracer's only handler."""
    made, handlers, propagate, level = TracerRelay(), TRACER.handlers, TRACER.propagate, TRACER.level
    TRACER.handlers, TRACER.propagate = [made], False
    TRACER.setLevel(logging.INFO)
    yield made
    TRACER.handlers, TRACER.propagate = handlers, propagate
    TRACER.setLevel(level)


def say(relay: TracerRelay, *, is_job: bool) -> list[object]:
    """Log as the tracer does, and return what goes into the report, as it arrives."""
    relay.begin(is_job=is_job)
    trace.info(trace.LOG_SUCCESS, SUCCESS)
    TRACER.error(trace.LOG_FAILURE.strip(), FAILURE, exc_info=(ValueError, ValueError("no"), None))
    said: list[object] = json.loads(json.dumps(relay.take()))
    return said


def test_what_the_tracer_says_of_a_plain_task_is_logged_again_by_the_worker(relay: TracerRelay, kept: Kept) -> None:
    said = say(relay, is_job=False)
    assert kept.records == []
    TRACER.handlers, TRACER.propagate = [], True
    log_again({FIELD: said, "traceback": "Traceback: here"})
    success, failure = kept.records
    assert (success.levelno, success.getMessage()) == (logging.INFO, "Task t[1] succeeded in 0.1s: 3")
    assert success.data["args"] == "()"  # type: ignore[attr-defined]
    assert failure.levelno == logging.ERROR
    assert "Traceback: here" in logging.Formatter().format(failure)


def test_of_a_job_failures_go_to_its_output_and_nothing_to_the_worker(relay: TracerRelay, kept: Kept) -> None:
    assert say(relay, is_job=True) == []
    assert [record.levelno for record in kept.records] == [logging.ERROR]


@pytest.mark.parametrize(
    "said", [None, "x", 7, [[20]], [[20, "other %s", {}, False]], [[20, trace.LOG_SUCCESS, [], False]]], ids=repr
)
def test_a_report_that_says_something_else_is_not_logged(said: object, kept: Kept) -> None:
    log_again({FIELD: said})
    assert kept.records == []


def test_what_a_plain_task_printed_goes_where_the_log_goes() -> None:
    handler, root = logging.StreamHandler(io.StringIO()), logging.getLogger()
    root.addHandler(handler)
    try:
        write_through(b"printed\n\xff\n")
    finally:
        root.removeHandler(handler)
    assert handler.stream.getvalue() == "printed\n\ufffd\n"
