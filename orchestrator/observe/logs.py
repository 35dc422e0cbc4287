"""How processes log: a line for people, or a JSON object a line for a log store (``log_format = "json"``).

An object has ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``, ``host``, ``process`` (worker, beat, api …)
and ``pid``; what is about a job also has ``job_id``, ``attempt`` and ``token``, and what Celery logs about a task its
``job_id`` and ``task``. Arguments of tasks are never among the fields.
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

TEXT: Final = "text"
JSON: Final = "json"
#: Attributes that Celery gives its records; the first has a task's arguments in it, the others say nothing more.
_NOT_SHOWN: Final = (*RESERVED_ATTRS, "data", "task_id", "task_name")


class JsonLines(JsonFormatter):
    """Writes each record as one JSON object."""

    def __init__(self, *, host: str, process: str) -> None:
        super().__init__(reserved_attrs=_NOT_SHOWN, json_ensure_ascii=False)
        self._static: dict[str, Any] = {"host": host, "process": process}

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        log_data["level"], log_data["logger"] = record.levelname, record.name
        super().add_fields(log_data, record, message_dict)
        log_data |= self._static | {"pid": record.process} | _task_of(record)


def about(*, job_id: str | None = None, attempt: int | None = None, token: int | None = None) -> dict[str, Any]:
    """Return the ``extra`` of a log call that is about a job, an attempt, or a lease."""
    fields = {"job_id": job_id, "attempt": attempt, "token": token}
    return {name: value for name, value in fields.items() if value is not None}


def use_json(handlers: Iterable[logging.Handler], *, host: str, process: str) -> None:
    """Have these handlers write JSON."""
    for handler in handlers:
        handler.setFormatter(JsonLines(host=host, process=process))


def set_up(level: str | int, format: str, *, host: str, process: str) -> None:
    """Have this process log to stderr, as ``format`` says."""
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s {process}: %(name)s: %(message)s")
    if format == JSON:
        use_json(logging.getLogger().handlers, host=host, process=process)


def _task_of(record: logging.LogRecord) -> dict[str, Any]:
    data = getattr(record, "data", None)  # what Celery says of a task
    if not isinstance(data, Mapping) or "id" not in data:
        return {}
    return {"job_id": data["id"], "task": data.get("name")}
