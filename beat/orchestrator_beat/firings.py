"""When each entry of the schedule fired last, kept where every beat process can see it.

A standby that becomes leader would otherwise know only its own start, and fire again what the old leader has fired.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

logger = logging.getLogger(__name__)

KEY: Final = "orchestrator:beat:fired"


class Firings:
    """A hash beside the results: entry name to the instant of its last firing."""

    def __init__(self, backend: Any) -> None:
        """Keep it with this Celery result backend; with another one than Redis nothing is kept."""
        self._backend = backend if hasattr(type(backend), "client") else None
        if self._backend is None:
            logger.warning("the result backend is not Redis: a new leader may fire an entry again that was just fired")

    def load(self) -> dict[str, datetime]:
        """Return what is known; nothing while Redis does not answer."""
        if self._backend is None:
            return {}
        try:
            stored: Mapping[bytes, bytes] = self._backend.client.hgetall(KEY)
        except self._backend.connection_errors as error:
            logger.warning("cannot read when the schedule fired last: %s", error)
            return {}
        fired = {}
        for name, instant in stored.items():
            try:
                fired[_text(name)] = datetime.fromisoformat(_text(instant))
            except ValueError:
                logger.warning("ignored a malformed instant of entry %r", _text(name))
        return fired

    def note(self, name: str, instant: datetime) -> None:
        """Keep the instant of a firing."""
        if self._backend is None:
            return
        try:
            self._backend.client.hset(KEY, name, instant.isoformat())
        except self._backend.connection_errors as error:
            logger.warning("cannot note that %s fired; a new leader may fire it again: %s", name, error)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
