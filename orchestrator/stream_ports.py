"""What services need of Redis: entries in streams, and words that wake somebody up.

Streams raise ``StreamUnavailable``; nothing in Redis is needed to put a job right, it can all be made again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from orchestrator.domain.entry import JobEntry


class StreamPublisher(Protocol):
    """Puts entries into the streams."""

    def publish(self, entries: Sequence[JobEntry]) -> Sequence[str]: ...

    def exist(self, entries: Sequence[tuple[JobEntry, str]]) -> Sequence[bool]:
        """Say for each (entry, entry id) whether it is still in its stream."""
        ...

    def dead_letter(self, queue: str, job_id: str, reason: str) -> None:
        """Keep a bounded copy of what could not be processed, with the reason."""
        ...

    def missing_streams(self, queues: Sequence[str]) -> Sequence[str]:
        """Return those of the queues whose stream or consumer group does not exist."""
        ...


class WakeListener(Protocol):
    """A subscription that can be ended."""

    def stop(self) -> None: ...


class Wake(Protocol):
    """Tells whoever listens that something is to be placed or cancelled; losing a message costs only time."""

    def publish(self, kind: str, **data: object) -> None: ...

    def listen(self, callback: Callable[[str, Mapping[str, object]], None]) -> WakeListener:
        """Call back, in a thread of its own, with the kind and data of every message."""
        ...
