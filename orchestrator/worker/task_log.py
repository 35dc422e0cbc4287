"""What is logged in a runner: where it goes so that Celery's users find it where they look.

A pool's child of Celery's writes into the worker's log. A runner only has a pipe for output. Of a job, that is what
`orch logs` shows, and what the job logs belongs there. Of a plain task it goes on to the worker's log, unchanged; what
Celery's tracer says of the task ("succeeded in", "raised unexpected") is logged by the worker itself, with its fields.
"""

import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final

from celery.app import trace

#: The name of the field of a runner's report that carries what the tracer said.
FIELD: Final = "log"
_TRACER: Final = "celery.app.trace"
_FORMATS: Final = frozenset(
    text.strip()
    for text in (
        trace.LOG_SUCCESS,
        trace.LOG_FAILURE,
        trace.LOG_INTERNAL_ERROR,
        trace.LOG_IGNORED,
        trace.LOG_REJECTED,
        trace.LOG_RETRY,
    )
)


class TracerRelay(logging.Handler):
    """Keeps what the tracer says of a plain task for the report, and of a job what belongs to its output."""

    def __init__(self) -> None:
        super().__init__()
        self._said: list[list[Any]] = []
        self._is_job = False

    def begin(self, *, is_job: bool) -> None:
        """A task starts."""
        self._is_job = is_job
        self._said.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; of a job, print it if it tells of anything but success."""
        if self._is_job:
            if record.levelno >= logging.WARNING:
                logging.getLogger().handle(record)
            return
        if isinstance(record.args, Mapping):
            fields = {name: value for name, value in record.args.items() if name != "traceback"}
            self._said.append([record.levelno, record.msg, fields, bool(record.exc_info)])

    def take(self) -> list[list[Any]]:
        """Return what was kept since the task started."""
        taken, self._said = self._said, []
        return taken


def set_up(app: Any, hostname: str, environment: Mapping[str, str]) -> TracerRelay:
    """Set up logging in a runner, at the worker's level, as Celery's own pool children do at their start."""
    level = int(environment.get("CELERY_LOG_LEVEL") or logging.WARNING)
    app.log.setup(level, None, False, hostname=hostname)
    relay, tracer = TracerRelay(), logging.getLogger(_TRACER)
    tracer.handlers, tracer.propagate = [relay], False
    return relay


def log_again(report: Mapping[str, Any]) -> None:
    """Log in the worker what the tracer said in the runner; the report is the runner's, so nothing in it is trusted."""
    tracer = logging.getLogger(_TRACER)
    said = report.get(FIELD)
    for one in said if isinstance(said, list) else ():
        match one:
            case [int(level), str(text), dict(fields), bool(has_traceback)] if text in _FORMATS:
                if not tracer.isEnabledFor(level):
                    continue
                fields = fields | {"traceback": report.get("traceback")}
                record = tracer.makeRecord(_TRACER, level, _TRACER, 0, text, (fields,), None, extra={"data": fields})
                record.exc_text = str(report.get("traceback")) if has_traceback else None
                tracer.handle(record)


def write_through(output: bytes) -> None:
    """Write what a plain task printed or logged to where the worker's log goes."""
    text = output.decode("utf-8", "replace")
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is not None
    ]
    for handler in handlers:
        with contextlib.suppress(OSError, ValueError):  # as logging does: a log that cannot be written stops nobody
            handler.acquire()
            try:
                handler.stream.write(text)
                handler.flush()
            finally:
                handler.release()
