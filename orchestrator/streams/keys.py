"""The names of everything this product keeps in Redis; no other module spells a key.

A queue is a family of streams that share one consumer group and, in the transport, one credit. They are read in this
order:

=================================  ====================================================================
``<stream>@<node>:front``          handed back by a host's own consumer
``<stream>@<node>``                jobs placed on that host
``<stream>:front``, ``:p3:front``  handed back by any consumer, a step of message priority each
``<stream>``, ``:p3``, ``:p6`` …   the queue, a step of message priority each (0 first, as in stock Redis)
=================================  ====================================================================

``<stream>:dlq`` is beside them and is read by people only.
"""

from typing import Final

#: Consumer group of every stream.
GROUP: Final = "orchestrator"
#: Pub/sub channel on which somebody says that there is something to place, cancel or preempt.
WAKE: Final = "orchestrator:wake"
#: Set by the leader's flush check alone: when it is gone, so is everything else that Redis held.
MARKER: Final = "orchestrator:streams"

_PREFIX: Final = "stream:orchestrator:"
_NAMED: Final = {"gpu": "inference_jobs"}  # queues whose stream has a name of its own


def stream_of(queue: str) -> str:
    """Return the stream of a queue."""
    return _PREFIX + _NAMED.get(queue, queue)


def node_stream(stream: str, node: str) -> str:
    """Return the stream of the jobs of one queue that were placed on one host."""
    return f"{stream}@{node}"


def priority_stream(stream: str, step: int) -> str:
    """Return the stream of one step of message priority; step 0 is the queue's own stream."""
    return f"{stream}:p{step}" if step else stream


def front_stream(stream: str) -> str:
    """Return the stream that is read before this one; what is handed back from a front stream stays in it."""
    return stream if stream.endswith(":front") else f"{stream}:front"


def dead_letter_stream(stream: str) -> str:
    """Return the stream that keeps copies of entries nobody could process."""
    return f"{stream}:dlq"
