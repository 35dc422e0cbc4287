"""Puts the entries of admitted jobs into their streams, and answers what has become of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from orchestrator.domain.entry import JobEntry
from orchestrator.streams import keys
from orchestrator.streams.client import translated
from orchestrator.streams.entries import encode_job
from orchestrator.streams.group import DEAD_LETTERS
from orchestrator.streams.scripts import script


class RedisStreamPublisher:
    """The port ``StreamPublisher`` on one Redis; safe to share between threads."""

    def __init__(self, client: Any, *, prefix: str = "") -> None:
        """Make it.

        Args:
            client: From ``orchestrator.streams.client.connect``.
            prefix: Stands before each stream's name; the broker option ``global_keyprefix``.
        """
        self._client, self._prefix = client, prefix

    def stream(self, entry: JobEntry) -> str:
        """Return the stream that an entry goes to."""
        stream = self._prefix + keys.stream_of(entry.queue)
        return stream if entry.node is None else keys.node_stream(stream, entry.node)

    def publish(self, entries: Sequence[JobEntry]) -> list[str]:
        """Append every entry, in order, in one round trip; return their ids.

        A lost reply leaves open what was appended: publishing again is safe, as a second delivery's claim is refused.
        """
        if not entries:
            return []
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for entry in entries:
                pipe.xadd(self.stream(entry), encode_job(entry))
            return [_text(entry_id) for entry_id in pipe.execute()]

    def exist(self, entries: Sequence[tuple[JobEntry, str]]) -> list[bool]:
        """Say for each (entry, entry id) whether it is still in the stream that it was published to."""
        if not entries:
            return []
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for entry, entry_id in entries:
                pipe.xrange(self.stream(entry), entry_id, entry_id, count=1)
            return [bool(found) for found in pipe.execute()]

    def missing_streams(self, queues: Sequence[str]) -> list[str]:
        """Return those of the queues whose stream or group did not exist, and make both.

        Consumers make groups as well when they need them, so after a flush a group alone proves nothing: a marker that
        only this method sets says whether Redis lost everything since the last call.
        """
        if not queues:
            return []
        with translated(), self._client.pipeline(transaction=False) as pipe:
            pipe.set(self._prefix + keys.MARKER, "1", nx=True)
            for queue in queues:
                pipe.xgroup_create(self._prefix + keys.stream_of(queue), keys.GROUP, id="0", mkstream=True)
            flushed, *created = pipe.execute(raise_on_error=False)
            for reply in (flushed, *created):
                if isinstance(reply, Exception) and not _is_busy_group(reply):
                    raise reply
        return [
            queue for queue, reply in zip(queues, created, strict=True) if flushed or not isinstance(reply, Exception)
        ]

    def depth(self, queues: Sequence[str]) -> Mapping[str, int]:
        """Return for each queue how many entries were delivered to nobody, hosts' own streams not counted."""
        families: defaultdict[str, list[str]] = defaultdict(list)
        for queue in queues:
            stream = self._prefix + keys.stream_of(queue)
            families[queue] = [stream, keys.front_stream(stream)]
        with translated():
            return {
                queue: int(script("size").run(self._client, family, [keys.GROUP])) for queue, family in families.items()
            }

    def dead_letter(self, queue: str, content: str, reason: str) -> None:
        """Keep a copy of something that nobody could process, beside the queue's stream; the oldest ones go."""
        stream = self._prefix + keys.stream_of(queue)
        with translated():
            self._client.xadd(
                keys.dead_letter_stream(stream),
                {"stream": stream, "reason": reason[:2000], "content": content},
                maxlen=DEAD_LETTERS,
                approximate=True,
            )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _is_busy_group(error: Exception) -> bool:
    return isinstance(error, ResponseError) and str(error).startswith("BUSYGROUP")
