"""Exceptions that were raised in a runner, as Celery's requests expect them, rebuilt from their description.

Nothing that user code made is unpickled in the worker.
"""

from typing import Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.serialization import create_exception_cls


def remote_error(report: dict[str, Any]) -> ExceptionInfo:
    """Return the exception info for a report whose state is not SUCCESS."""
    try:
        raise _exception(report)
    except Exception as error:  # noqa: BLE001 - raised one line above, for its traceback slot
        info = ExceptionInfo((type(error), error, error.__traceback__))
    info.traceback = str(report.get("traceback", ""))
    return info


def _exception(report: dict[str, Any]) -> Exception:
    message = str(report.get("error", ""))
    state = report.get("state")
    if state == states.RETRY:
        return Retry(message)  # type: ignore[no-any-return]
    if state == states.REJECTED:
        return Reject(message, requeue=bool(report.get("requeue")))  # type: ignore[no-any-return]
    if state == states.IGNORED:
        return Ignore(message)  # type: ignore[no-any-return]
    name, module = str(report.get("error_type", "Exception")), str(report.get("error_module", "builtins"))
    return create_exception_cls(name, module, Exception)(message)  # type: ignore[no-any-return]
