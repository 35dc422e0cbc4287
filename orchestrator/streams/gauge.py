"""How full the streams of queues are."""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from orchestrator.metric_ports import Backlog
from orchestrator.streams import keys
from orchestrator.streams.client import translated


class RedisStreamGauge:
    """``StreamGauge`` on one Redis; safe to share between threads."""

    def __init__(self, client: Any, *, prefix: str = "") -> None:
        """Make it; the arguments are those of ``RedisStreamPublisher``."""
        self._client, self._prefix = client, prefix

    def backlogs(self, queues: Sequence[str], nodes: Sequence[str]) -> Mapping[str, Backlog]:
        """Return for each queue what its own stream and those of these hosts hold, in one round trip."""
        names = {queue: self._streams(queue, nodes) for queue in queues}
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for stream in (stream for streams in names.values() for stream in streams):
                pipe.xlen(stream)
                pipe.xpending(stream, keys.GROUP)
            replies = iter(pipe.execute(raise_on_error=False))
            found = {}
            for queue, streams in names.items():
                held = [(_checked(next(replies)) or 0, _pending(next(replies))) for _ in streams]
                pending = sum(one for _, one in held)
                found[queue] = Backlog(max(0, sum(length for length, _ in held) - pending), pending)
        return found

    def _streams(self, queue: str, nodes: Sequence[str]) -> list[str]:
        stream = self._prefix + keys.stream_of(queue)
        own = [stream, *(keys.node_stream(stream, node) for node in nodes)]
        return [name for one in own for name in (one, keys.front_stream(one))]


def _checked(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


def _pending(reply: Any) -> int:
    if isinstance(reply, ResponseError) and str(reply).startswith("NOGROUP"):
        return 0  # nobody has read from it yet, or it does not exist
    return int(_checked(reply)["pending"])
