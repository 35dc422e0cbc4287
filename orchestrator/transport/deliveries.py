"""What this process has been delivered and not yet acknowledged, across channels and reconnects.

The server's pending entries list is the record; this is the part of it that this process works on. A task that runs
while the connection breaks keeps its entry: nothing is handed back, the entry is renewed, and the acknowledgement
leaves through whatever connection lives. An entry is handed back when its message has been forgotten by everybody
without an acknowledgement, or when the process ends.
"""

import gc
import logging
import os
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable
from multiprocessing.util import Finalize
from typing import Any, Final

from orchestrator.streams.errors import CONNECTION_ERRORS, ResponseError
from orchestrator.streams.group import StreamConsumer

logger = logging.getLogger(__name__)

#: Between a delivery tag's stream and entry id.
SEPARATOR: Final = "|"
#: Acknowledgements wait at most so long where no event loop flushes them, as in a warm shutdown.
FLUSH_SECONDS: Final = 0.5
#: Seconds between attempts while the server does not answer.
LONGEST_PAUSE: Final = 5.0

_registry: dict[tuple[Any, ...], "Deliveries"] = {}
_registry_lock = threading.Lock()


def tag_of(stream: str, entry_id: str) -> str:
    """Return the delivery tag of an entry: an acknowledgement needs nothing else."""
    return f"{stream}{SEPARATOR}{entry_id}"


class Deliveries:
    """The unacknowledged entries of one consumer name in this process."""

    def __init__(self, consumer: StreamConsumer) -> None:
        self.consumer = consumer
        self.streams: set[str] = set()  # read at least once under this name
        self.acks: deque[str] = deque()
        self._abandoned: deque[str] = deque()
        self._owned: dict[str, weakref.ref[Any]] = {}
        self._renew_seconds = FLUSH_SECONDS * 30
        self._renewed_at = time.monotonic()
        self._collect_at: float | None = None
        self._flush_lock = threading.Lock()
        self._is_failing = False  # the event loop leaves flushing to the thread
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._finalize = Finalize(None, self.close, exitpriority=0)  # does nothing in a forked child

    def __contains__(self, tag: str) -> bool:
        return tag in self._owned

    def __len__(self) -> int:
        return len(self._owned)

    def keep_within(self, visibility: float) -> None:
        """Renew at least four times in so many seconds."""
        self._renew_seconds = min(self._renew_seconds, visibility / 4)

    def add(self, tag: str, message: Any) -> None:
        """Own an entry for as long as its message is remembered by anybody, or until it is settled."""
        self._owned[tag] = weakref.ref(message, lambda _: self._on_forgotten(tag))
        if self._thread is None:
            self._start()

    def ack(self, tag: str) -> None:
        """Settle an entry; ``flush`` tells the server."""
        self._owned.pop(tag, None)
        self.acks.append(tag)

    def requeue(self, tags: Iterable[str]) -> None:
        """Hand entries back to be delivered before what waits, at once."""
        for stream, ids in _by_stream(tags).items():
            for entry_id in ids:
                self._owned.pop(tag_of(stream, entry_id), None)
            self.consumer.requeue(stream, ids)

    def bury(self, tag: str, reason: str) -> None:
        """Move an entry to the dead-letter stream."""
        self._owned.pop(tag, None)
        stream, _, entry_id = tag.rpartition(SEPARATOR)
        logger.error("entry %s of %s goes to the dead-letter stream: %s", entry_id, stream, reason)
        self.consumer.bury(stream, entry_id, reason)

    def flush(self) -> None:
        """Tell the server of every settled and every forgotten entry; what fails is kept for the next call."""
        with self._flush_lock:
            for settled, tell in ((self.acks, self._ack_now), (self._abandoned, self.requeue)):
                tags = _drain(settled)
                if not tags:
                    continue
                try:
                    tell(tags)
                except BaseException:
                    settled.extendleft(reversed(tags))  # both may be told twice
                    raise

    def flush_or_leave(self) -> None:
        """Flush; where the connection fails, leave it to this object's thread, which tries until it can.

        For the event loop, where the error would end the connection that reads: Celery then drops every task that a
        child has taken and not yet reported, and those run twice. A server that is gone ends that connection anyway.
        """
        if self._is_failing:
            return
        try:
            self.flush()
        except CONNECTION_ERRORS as error:
            self._is_failing = True
            logger.warning("acknowledgements could not be sent, they are tried again: %s", error)

    def collect_soon(self) -> None:
        """A channel has closed: look for messages that only a reference cycle remembers."""
        self._collect_at = time.monotonic() + 1

    def renew(self) -> None:
        """Keep every owned entry this consumer's."""
        for stream, ids in _by_stream(list(self._owned)).items():
            for entry_id in self.consumer.renew(stream, ids):
                if self._owned.pop(tag_of(stream, entry_id), None) is not None:
                    logger.warning("entry %s of %s was taken over while it was worked on", entry_id, stream)

    def close(self) -> None:
        """Hand back what is owned, acknowledge what is settled, and leave the groups; at the end of the process."""
        self._stopping.set()
        owned, self._owned = list(self._owned), {}
        self._abandoned.extend(owned)
        try:
            self.flush()
            if self.streams:
                self.consumer.leave(sorted(self.streams))
        except (*CONNECTION_ERRORS, ResponseError) as error:
            # Their idle time runs from the last renewal: another consumer claims them.
            left = len(self._abandoned) + len(self.acks)
            logger.log(
                logging.WARNING if left else logging.DEBUG, "%d entries are left to be reclaimed: %s", left, error
            )
        self.consumer.client.close()

    def _ack_now(self, tags: list[str]) -> None:
        self.consumer.ack(_by_stream(tags))

    def _on_forgotten(self, tag: str) -> None:
        if self._owned.pop(tag, None) is not None:
            self._abandoned.append(tag)

    def _start(self) -> None:
        # A thread, not a timer of the event loop: the solo pool blocks the loop for as long as a task runs, and the
        # thread pool's warm shutdown fires no timer at all, while the entries' tasks do run.
        self._thread = threading.Thread(target=self._keep, name="orchestrator-entries", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        pause = 0.0
        while not self._stopping.wait(max(pause, min(FLUSH_SECONDS, self._renew_seconds))):
            try:
                self._keep_once()
                pause = 0.0
            except (*CONNECTION_ERRORS, ResponseError) as error:
                level = logging.DEBUG if pause else logging.WARNING
                pause = min(max(pause, FLUSH_SECONDS) * 2, LONGEST_PAUSE)
                logger.log(level, "entries could not be kept, trying until they can: %s", error)

    def _keep_once(self) -> None:
        now = time.monotonic()
        if self._collect_at is not None and now >= self._collect_at:
            self._collect_at = None
            gc.collect()
        if self.acks or self._abandoned:
            self.flush()
        self._is_failing = False
        if now - self._renewed_at >= self._renew_seconds:
            self.renew()
            self._renewed_at = now


def deliveries_of(key: tuple[Any, ...], make: Any) -> Deliveries:
    """Return this process's deliveries for a broker and consumer name, made by ``make()`` the first time."""
    key = (os.getpid(), *key)  # a forked child owns nothing of its parent's
    with _registry_lock:
        found = _registry.get(key)
        if found is None:
            found = _registry[key] = make()
        return found


def close_all() -> None:
    """Hand back everything that this process was delivered; what the end of the process does by itself."""
    with _registry_lock:
        closing = [one for key, one in _registry.items() if key[0] == os.getpid()]
        _registry.clear()
    for one in closing:
        one.close()


def _drain(waiting: deque[str]) -> list[str]:
    # Not a swap: another thread may be about to append to the one that was swapped out.
    return [waiting.popleft() for _ in range(len(waiting))]


def _by_stream(tags: Iterable[str]) -> dict[str, list[str]]:
    streams: defaultdict[str, list[str]] = defaultdict(list)
    for tag in tags:
        stream, _, entry_id = tag.rpartition(SEPARATOR)
        streams[stream].append(entry_id)
    return streams
