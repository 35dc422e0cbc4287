"""The transport for a Redis that Sentinel watches: ``sentinel-streams://host:26379;sentinel-streams://…``."""

from typing import Any

from kombu.transport import redis as stock

from orchestrator.transport.channel import Channel
from orchestrator.transport.transport import Transport


class SentinelChannel(Channel, stock.SentinelChannel):
    """A channel whose connections go to the current master."""

    from_transport_options = tuple(
        dict.fromkeys((*Channel.from_transport_options, *stock.SentinelChannel.from_transport_options))
    )
    connection_class = stock.SentinelChannel.connection_class
    connection_class_ssl = stock.SentinelChannel.connection_class_ssl

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        client = self.connection.client
        spelled = client.alt
        # Stock kombu looks for its own scheme among the alternates.
        client.alt = [url.replace("sentinel-streams://", "sentinel://") for url in spelled]
        try:
            return super()._sentinel_managed_pool(asynchronous)
        finally:
            client.alt = spelled


class SentinelTransport(Transport):
    """Streams on a master that may move."""

    default_port = 26379
    Channel = SentinelChannel
