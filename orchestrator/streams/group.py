"""One consumer of the group, as operations on streams; every one is a single round trip and atomic on the server.

Nothing here blocks and nothing remembers: what a consumer works on is the server's pending entries list.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.streams.client import Capabilities
from orchestrator.streams.keys import GROUP, dead_letter_stream, front_stream
from orchestrator.streams.scripts import script

#: Most ids in one call: Lua's unpack and Redis's latency both want a bound.
BATCH: Final = 500
#: About how many dead letters a stream keeps.
DEAD_LETTERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Delivered:
    """One entry as a script returned it."""

    stream: int  # its place in the list of streams that was asked
    id: str
    kind: str  # m, j, ? (malformed) or ! (delivered too often)
    value: bytes


class StreamConsumer:
    """The group's operations for one consumer name."""

    def __init__(self, client: Any, name: str, capabilities: Capabilities) -> None:
        self.client, self.name = client, name
        self._ack_and_delete = capabilities.ack_and_delete

    def take(self, streams: Sequence[str], count: int) -> list[Delivered]:
        """Deliver up to ``count`` new entries, from the first streams first."""
        return parse_delivered(
            script("take").run(self.client, streams, [GROUP, self.name, 1, count, *[1] * len(streams)])
        )[0]

    def ack(self, ids_by_stream: Mapping[str, Sequence[str]]) -> None:
        """Acknowledge and delete; ids that are unknown are not an error."""
        for stream, ids in ids_by_stream.items():
            for chunk in _chunks(ids):
                if self._ack_and_delete:
                    self.client.execute_command("XACKDEL", stream, GROUP, "DELREF", "IDS", len(chunk), *chunk)
                else:
                    script("ack").run(self.client, [stream], [GROUP, *chunk])

    def requeue(self, stream: str, ids: Sequence[str]) -> int:
        """Hand entries back for anybody, ahead of what waits; return how many this consumer still owned."""
        return sum(
            int(script("requeue").run(self.client, [stream, front_stream(stream)], [GROUP, self.name, *chunk]))
            for chunk in _chunks(ids)
        )

    def renew(self, stream: str, ids: Sequence[str]) -> set[str]:
        """Keep entries this consumer's; return the ids that no longer are."""
        lost: set[str] = set()
        for chunk in _chunks(ids):
            lost.update(id_.decode() for id_ in script("renew").run(self.client, [stream], [GROUP, self.name, *chunk]))
        return lost

    def bury(self, stream: str, entry_id: str, reason: str) -> None:
        """Move an entry to the dead-letter stream beside ``stream``, raw, with the reason."""
        script("bury").run(
            self.client, [stream, dead_letter_stream(stream)], [GROUP, entry_id, reason[:2000], DEAD_LETTERS]
        )

    def size(self, streams: Sequence[str]) -> int:
        """Return how many entries were delivered to nobody."""
        return int(script("size").run(self.client, streams, [GROUP]))

    def purge(self, streams: Sequence[str]) -> int:
        """Delete entries that were delivered to nobody; return how many."""
        return int(script("purge").run(self.client, streams, [GROUP]))

    def leave(self, streams: Sequence[str]) -> None:
        """Remove this consumer's name from the groups in which nothing is pending for it."""
        script("leave").run(self.client, streams, [GROUP, self.name])


def parse_delivered(reply: Sequence[Any]) -> tuple[list[Delivered], list[str]]:
    """Read the reply of the scripts ``take`` and ``claim``: the entries, and one word a stream."""
    entries = []
    for line in reply[0]:
        stream, entry_id, value = line.split(b" ", 2)
        entries.append(Delivered(int(stream) - 1, entry_id.decode(), chr(value[0]), value[1:]))
    return entries, reply[1].decode().split(" ")


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))
