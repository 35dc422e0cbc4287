"""What a channel reads next: which streams, in which order, how many entries, and the commands that say so.

Two commands alternate on the channel's blocking connection. The script ``take`` delivers, in strict order and never
beyond prefetch and credit; it cannot wait. A plain XREAD waits and delivers nothing: it wakes when a stream grows past
the entry that ``take`` named. (XREADGROUP does both, but its COUNT is per stream: it mixes priorities and takes more
than was asked.)
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.streams import keys
from orchestrator.streams.group import parse_delivered
from orchestrator.streams.keys import GROUP
from orchestrator.streams.scripts import script


@dataclass(frozen=True, slots=True)
class Source:
    """One stream of a queue."""

    stream: str
    queue: str
    redelivered: bool  # what it holds was delivered before


@dataclass(frozen=True, slots=True)
class Entry:
    """One delivered entry."""

    source: Source
    id: str
    kind: str
    value: bytes
    redelivered: bool


@dataclass(slots=True)
class Read:
    """One command in flight, and what its reply will be about."""

    sources: Sequence[Source]
    queues: frozenset[str]
    asked: Mapping[str, int] = field(default_factory=dict)  # credit set aside for it, by queue
    waits: bool = False
    claims: bool = False
    interrupted: bool = False


def family(prefix: str, queue: str, *, steps: Sequence[int], node: str | None) -> list[list[Source]]:
    """Return a queue's streams by step of message priority, most urgent first; a host's own are in the first step."""
    stream = prefix + keys.stream_of(queue)
    levels = []
    for step in steps:
        own = keys.priority_stream(stream, step)
        levels.append([Source(keys.front_stream(own), queue, True), Source(own, queue, False)])
    if node is not None:
        own = keys.node_stream(stream, node)
        levels[0][:0] = [Source(keys.front_stream(own), queue, True), Source(own, queue, False)]
    return levels


class Plan:
    """The streams of every queue that a channel consumes, and what is known about them."""

    def __init__(self, *, prefix: str, steps: Sequence[int], node: str | None) -> None:
        self._prefix, self._steps, self._node = prefix, steps, node
        self._order: deque[str] = deque()
        self._families: dict[str, list[list[Source]]] = {}
        self._after: dict[str, str] = {}  # stream -> the entry after which it was seen to hold no news
        self._cursors: dict[str, str] = {}
        self._sources: dict[frozenset[str], list[Source]] = {}

    @property
    def queues(self) -> Sequence[str]:
        """The queues, the one whose turn it is first."""
        return self._order

    def set_queues(self, queues: Sequence[str]) -> None:
        """Consume these from now on."""
        self._order = deque(dict.fromkeys(queues))
        self._families = {
            queue: family(self._prefix, queue, steps=self._steps, node=self._node) for queue in self._order
        }
        self._sources.clear()
        self._after.clear()

    def sources(self, queues: frozenset[str]) -> list[Source]:
        """Return the streams of some of the queues in the order in which they are read."""
        found = self._sources.get(queues)
        if found is None:
            chosen = [self._families[queue] for queue in self._order if queue in queues]
            found = [source for level in zip(*chosen, strict=True) for part in level for source in part]
            self._sources[queues] = found
        return found

    def rotate(self) -> None:
        """Let the next queue go first, within each step of priority."""
        if len(self._order) > 1:
            self._order.rotate(-1)
            self._sources.clear()

    def has_no_news(self, sources: Sequence[Source]) -> bool:
        """Whether all of these were seen to be drained; only then may a read wait."""
        return all(source.stream in self._after for source in sources)

    def expect_news(self) -> None:
        """Forget what was seen to be drained."""
        self._after.clear()

    def take_command(self, consumer: str, sources: Sequence[Source], budgets: Mapping[str | None, int]) -> list[Any]:
        """Return the command that delivers; ``budgets`` by queue under credit, under None for all others."""
        return ["EVALSHA", script("take").sha, len(sources), *_reading(consumer, sources, budgets)]

    def claim_command(
        self, consumer: str, sources: Sequence[Source], budgets: Mapping[str | None, int], *, idle_ms: int, most: int
    ) -> list[Any]:
        """Return the command that claims entries of silent consumers, and goes on where the last one stopped."""
        cursors = [self._cursors.get(source.stream, "0-0") for source in sources]
        reading = _reading(consumer, sources, budgets)
        return ["EVALSHA", script("claim").sha, len(sources), *reading, idle_ms, most, *cursors]

    def wait_command(self, sources: Sequence[Source], block_ms: int) -> list[Any]:
        """Return the command that waits for news of drained streams."""
        streams = [source.stream for source in sources]
        after = [self._after[stream] for stream in streams]
        return ["XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *streams, *after]

    def entries(self, read: Read, reply: Sequence[Any]) -> list[Entry]:
        """Read the reply of a ``take`` or ``claim`` command, and remember what it says about the streams."""
        delivered, words = parse_delivered(reply)
        known = self._cursors if read.claims else self._after
        for source, word in zip(read.sources, words, strict=True):
            if word == "-":
                known.pop(source.stream, None)
            else:
                known[source.stream] = word
        found = []
        for one in delivered:
            source = read.sources[one.stream]
            found.append(Entry(source, one.id, one.kind, one.value, source.redelivered or read.claims))
        return found


def _reading(consumer: str, sources: Sequence[Source], budgets: Mapping[str | None, int]) -> list[Any]:
    numbers = {queue: number for number, queue in enumerate(budgets, 1)}
    plain = numbers.get(None, 0)
    return [
        *(source.stream for source in sources),
        GROUP,
        consumer,
        len(budgets),
        *budgets.values(),
        *(numbers.get(source.queue, plain) for source in sources),
    ]
