"""From an entry to the message that Celery reads."""

import json
from typing import Any, Final

from kombu.transport.virtual import Message
from kombu.utils.json import loads

from orchestrator.domain.entry import JobEntry
from orchestrator.errors import InvalidEntry
from orchestrator.streams.entries import checked_message, decode_job
from orchestrator.transport.reads import Entry

#: Header under which a worker finds what a job's entry says beyond Celery's own headers.
HEADER: Final = "orchestrator"


#: Arguments, keyword arguments and canvas of a job: they come from the database with the claim.
def _no_arguments() -> list[Any]:
    return [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


_BODY: Final = json.dumps(_no_arguments())
_HEADERS: Final[dict[str, Any]] = {
    "lang": "py",
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "parent_id": None,
    "argsrepr": "()",
    "kwargsrepr": "{}",
    "origin": "orchestrator",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}


def message_of(entry: Entry, tag: str, channel: Any, *, max_deliveries: int) -> Any:
    """Return the kombu message of an entry.

    Raises:
        InvalidEntry: If it cannot be made into one, or was delivered too often.
    """
    if entry.kind == "!":
        raise InvalidEntry(f"delivered more than {max_deliveries} times without an acknowledgement")
    if entry.kind == "j":
        payload = expand(decode_job(entry.value))
    elif entry.kind == "m":
        payload = _parse(entry.value)
    else:
        raise InvalidEntry("an entry has one field, 'j' or 'm'")
    properties = payload["properties"]
    properties["delivery_tag"] = tag
    if entry.redelivered:
        properties["delivery_info"]["redelivered"] = True
        payload["headers"]["redelivered"] = True
    try:
        message = Message(payload, channel=channel)
    except (AttributeError, KeyError, LookupError, TypeError, ValueError) as error:
        raise InvalidEntry(f"malformed message: {error!r}") from error
    if entry.kind == "j":
        message._decoded_cache = _no_arguments()  # what decoding the body would give
    return message


def expand(job: JobEntry) -> dict[str, Any]:
    """Return the Celery message, protocol 2, that a job's entry stands for; its body is empty."""
    said = job.headers.get(HEADER)
    headers = {
        **_HEADERS,
        "root_id": job.job_id,
        **job.headers,
        "task": job.task,
        "id": job.job_id,
        HEADER: {**(said if isinstance(said, dict) else {}), "seq": job.seq},
    }
    return {
        "body": _BODY,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "correlation_id": job.job_id,
            "reply_to": "",
            "delivery_mode": 2,
            "priority": 0,
            "body_encoding": None,
            "delivery_info": {"exchange": "", "routing_key": job.queue},
        },
    }


def _parse(value: bytes) -> dict[str, Any]:
    # kombu's own parser calls back for each object, to find dates and the like, which it spells with __type__.
    try:
        parsed = loads(value.decode()) if b'"__type__"' in value else json.loads(value)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidEntry(f"not JSON: {error}") from error
    return checked_message(parsed)
