"""Tells whoever listens that something is to be placed or cancelled; losing a message costs only time."""

import json
import logging
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from redis.exceptions import RedisError

from orchestrator.streams.client import connect, translated
from orchestrator.streams.keys import WAKE

logger = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0


class RedisWake:
    """The port ``Wake`` on one Redis."""

    def __init__(self, client: Any, *, prefix: str = "") -> None:
        self._client, self._channel = client, prefix + WAKE

    def publish(self, kind: str, **data: object) -> None:
        """Tell every listener; raises ``StreamUnavailable``."""
        with translated():
            self._client.publish(self._channel, json.dumps({"kind": kind, **data}, separators=(",", ":")))


class WakeListener:
    """A thread that calls back for each message, and reconnects for as long as it takes."""

    def __init__(self, url: str, callback: Callable[[str, Mapping[str, Any]], None], *, prefix: str = "") -> None:
        """Make it; ``start`` starts it.

        Args:
            url: As ``connect`` takes it.
            callback: Gets the kind and the data, in this thread; what it raises is logged.
            prefix: As the publisher's.
        """
        self._client: Any = connect(url)
        self._callback, self._channel = callback, prefix + WAKE
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orchestrator-wake", daemon=True)
        self.malformed = 0
        self.subscribed = threading.Event()

    def start(self) -> None:
        """Start listening; ``subscribed`` is set as soon as nothing is missed any more."""
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Stop listening; safe to repeat, and from any thread but the listener's own."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._client.close()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                self._listen()
                pause = _FIRST_PAUSE
            except (RedisError, OSError) as error:
                if self.subscribed.is_set():
                    pause = _FIRST_PAUSE
                self.subscribed.clear()
                logger.warning("wake channel lost, listening again in %.1f s: %s", pause, error)
                self._stopping.wait(pause * random.uniform(0.5, 1))  # noqa: S311
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _listen(self) -> None:
        with self._client.pubsub() as pubsub:
            pubsub.subscribe(self._channel)
            while not self._stopping.is_set():
                message = pubsub.get_message(timeout=0.5)
                if message is None:
                    pubsub.check_health()  # a half-open connection would be silent for ever
                elif message["type"] == "subscribe":
                    self.subscribed.set()
                elif message["type"] == "message":
                    self._deliver(message["data"])

    def _deliver(self, raw: bytes) -> None:
        try:
            data = json.loads(raw)
            kind = data.pop("kind")
            if not isinstance(kind, str):
                raise TypeError("kind is not a string")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.malformed += 1
            logger.warning("ignored malformed wake message number %d: %r", self.malformed, error)
            return
        try:
            self._callback(kind, data)
        except Exception:
            logger.exception("the listener's callback failed on %r", kind)
