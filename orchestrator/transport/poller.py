"""Polls the channels' connections: stock kombu's poller with another reading of the blocking connection.

kombu calls what belongs to that connection BRPOP, after the command that it sends there; the names are kept because
kombu's own checks of a half-open connection go by them.
"""

from typing import Any

from kombu.transport.redis import MultiChannelPoller


class StreamPoller(MultiChannelPoller):
    """Asks each channel what it wants to send before the poll."""

    def on_poll_start(self, busy: bool = False) -> None:
        """Have every channel send what it can.

        Args:
            busy: More events are at hand: what is small may wait and go out together with what they bring.
        """
        for channel in tuple(self._channels):
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)
            channel.send_reads(busy)

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Hand out one message, for ``drain_events``: one that was read before, or one that is read now."""
        for channel in tuple(self._channels):
            if channel.deliver_waiting():
                return
        super().get(callback, timeout)

    def ready_to_send(self, channel: Any) -> bool:
        """Connect and register the channel's blocking connection; whether nothing is in flight on it."""
        client = channel.client
        if not self._client_registered(channel, client, "BRPOP"):
            channel.forget_read()
            self._register(channel, client, "BRPOP")
        return not channel._in_poll

    def on_readable(self, fileno: int) -> None:
        """Have the channel read its reply, also when it has no room: a reply that delivers was asked for."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind == "BRPOP":
            if channel._in_poll:
                channel.handlers["BRPOP"]()
            else:
                channel.client.connection.disconnect()  # nothing is expected: the server has closed it
            return
        super().on_readable(fileno)

    def _update_brpop_polling(self) -> None:
        """Pause nothing."""
