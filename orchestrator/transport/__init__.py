"""The kombu transport over Redis Streams: ``redis-streams://``, ``rediss-streams://`` and ``sentinel-streams://``.

``register`` makes kombu know the schemes; an app's module calls it before the broker URL is used. Transport options,
beside those of kombu's Redis transport (of which the ``unacked_*`` and ``ack_emulation`` ones mean nothing here):

``consumer_name``      the consumer's name in the group; unique among live workers; default: host name and process id
``node``               also read the streams of the jobs placed on this host, ahead of the shared ones
``visibility``         seconds after which a silent consumer's entries are delivered to another (60)
``max_deliveries``     an entry delivered more often than this goes to the dead-letter stream (16)
``read_count``         most entries in one read (100)
"""

from typing import Final

from kombu.transport import TRANSPORT_ALIASES

SCHEMES: Final = {
    "redis-streams": "orchestrator.transport.transport:Transport",
    "rediss-streams": "orchestrator.transport.transport:Transport",
    "sentinel-streams": "orchestrator.transport.sentinel:SentinelTransport",
}


def register() -> None:
    """Make kombu know the URL schemes; safe to repeat."""
    TRANSPORT_ALIASES.update(SCHEMES)
