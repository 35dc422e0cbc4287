"""What an entry of a stream holds: one field, either a job (``j``) or a message of a plain Celery task (``m``).

A job entry carries no arguments: they come from the database with the claim, so whoever can write to Redis cannot forge
work. Everything is JSON. Documents are ``{"id", "task", "seq", "queue", "headers", "node"?}``.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from orchestrator.domain.entry import JobEntry
from orchestrator.errors import InvalidEntry

#: Field of an entry that stands for a job.
JOB_FIELD: Final = "j"
#: Field of an entry that is a whole message, as stock kombu writes it.
MESSAGE_FIELD: Final = "m"

_TEXT: Final = ("id", "task", "queue")


def encode_job(entry: JobEntry) -> dict[str, str]:
    """Return the fields of a job's entry, as compact JSON."""
    document: dict[str, Any] = {
        "id": entry.job_id,
        "task": entry.task,
        "seq": entry.seq,
        "queue": entry.queue,
        "headers": dict(entry.headers),
    }
    if entry.node is not None:
        document["node"] = entry.node
    return {JOB_FIELD: json.dumps(document, separators=(",", ":"))}


def decode_job(text: str | bytes) -> JobEntry:
    """Return the job that the value of a ``j`` field stands for.

    Raises:
        InvalidEntry: Naming the first thing that is wrong.
    """
    document = _json_object(text)
    for name in _TEXT:
        if not isinstance(document.get(name), str) or not document[name]:
            raise InvalidEntry(f"a job entry needs {name!r}, a non-empty string")
    seq, headers, node = document.get("seq"), document.get("headers", {}), document.get("node")
    if not isinstance(seq, int) or isinstance(seq, bool) or seq < 1:
        raise InvalidEntry("a job entry needs 'seq', a positive integer")
    if not isinstance(headers, dict):
        raise InvalidEntry("'headers' of a job entry must be an object")
    if node is not None and not isinstance(node, str):
        raise InvalidEntry("'node' of a job entry must be a string")
    return JobEntry(document["id"], seq, document["task"], document["queue"], node, headers)


def decode_message(text: str | bytes) -> dict[str, Any]:
    """Return the kombu message in the value of an ``m`` field, checked as far as delivery relies on it.

    Raises:
        InvalidEntry: Naming the first thing that is wrong.
    """
    return checked_message(_json_object(text))


def checked_message(message: Any) -> dict[str, Any]:
    """Return a parsed kombu message if it has what delivery relies on.

    Raises:
        InvalidEntry: Naming the first thing that is wrong.
    """
    if not isinstance(message, dict):
        raise InvalidEntry(f"not a JSON object but {type(message).__name__}")
    properties = message.get("properties")
    if not isinstance(properties, dict):
        raise InvalidEntry("a message needs 'properties', an object")
    if not isinstance(properties.setdefault("delivery_info", {}), dict):
        raise InvalidEntry("'delivery_info' of a message must be an object")
    if message.get("headers") is None:
        message["headers"] = {}
    if not isinstance(message["headers"], dict):
        raise InvalidEntry("'headers' of a message must be an object")
    return message


def decode_fields(fields: Mapping[bytes, bytes]) -> JobEntry | dict[str, Any]:
    """Return what a whole entry stands for: a job, or a plain message.

    Raises:
        InvalidEntry: If it is neither.
    """
    if len(fields) == 1:
        field, value = next(iter(fields.items()))
        if field == JOB_FIELD.encode():
            return decode_job(value)
        if field == MESSAGE_FIELD.encode():
            return decode_message(value)
    raise InvalidEntry(f"an entry has one field, 'j' or 'm', not {sorted(fields)!r}")


def _json_object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidEntry(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidEntry(f"not a JSON object but {type(value).__name__}")
    return value
