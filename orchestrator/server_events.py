"""Server-sent events, read from the lines of an answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

#: The API says something at least every 15 s; a stream that is silent for so long is dead.
SILENCE_SECONDS: Final = 40.0
EVENT_STREAM: Final = "text/event-stream"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream."""

    event: str  # of the installation ``event``; of a job ``state``, ``output``, ``progress``, ``end``
    data: dict[str, Any]
    id: str | None  # where to go on behind it


class EventLines:
    """Puts events together from the lines that a stream consists of."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Iterator[ServerEvent]:
        """Take a line; yield the event that it ends."""
        if line:
            name, _, value = line.partition(":")
            if name:  # else it is a comment
                self._fields[name] = value.removeprefix(" ")
            return
        fields, self._fields = self._fields, {}
        if "data" in fields:
            yield ServerEvent(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))


class Place:
    """How far a follower has come, over as many streams as it takes."""

    def __init__(self, job_id: str | None, after: str | None) -> None:
        self._of_a_job, self.after, self.has_ended = job_id is not None, after, False
        self.heard = False  # something since the last look
        self._lines = EventLines()

    def begin(self) -> dict[str, str]:
        """Return the headers of the next stream's request."""
        self._lines, self.heard = EventLines(), False
        return {"Accept": EVENT_STREAM} | ({} if self.after is None else {"Last-Event-ID": self.after})

    def take(self, line: str) -> Iterator[ServerEvent]:
        """Take a line; yield what is for whoever follows: what is said of the stream itself is not."""
        for event in self._lines.feed(line):
            self.after, self.heard = event.id or self.after, True
            self.has_ended = self._of_a_job and event.event == "end"
            if event.event not in ("lagged", "problem"):
                yield event
