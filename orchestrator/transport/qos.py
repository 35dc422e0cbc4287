"""Prefetch and acknowledgement for streams: the pending entries list is the unacked set, so neither writes anything."""

from typing import TYPE_CHECKING, Any

from kombu.transport import virtual

if TYPE_CHECKING:
    from orchestrator.transport.deliveries import Deliveries


class QoS(virtual.QoS):
    """What one channel has delivered and not settled.

    Messages of queues under credit are remembered, but take no prefetch.
    """

    channel: Any
    prefetch_count: int
    _delivered: dict[str, Any]
    _dirty: set[str]

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._credited: dict[str, Any] = {}

    @property
    def deliveries(self) -> "Deliveries":
        """The process-wide record that outlives this channel."""
        deliveries: Deliveries = self.channel.deliveries
        return deliveries

    def room(self) -> int | None:
        """Return how many more messages prefetch allows; None means any number."""
        if not self.can_consume():
            return 0
        if "can_consume" in self.__dict__:
            return 1  # worker_disable_prefetch has replaced it: whether there is room for more, it says only after each
        if not self.prefetch_count:
            return None
        return max(self.prefetch_count - (len(self._delivered) - len(self._dirty)), 1)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a delivered message until it is settled."""
        if self._dirty:
            self._flush()
        self._delivered[delivery_tag] = message
        self.deliveries.add(delivery_tag, message)

    def append_credited(self, message: Any, delivery_tag: str) -> None:
        """Remember a message of a queue under credit."""
        self._credited[delivery_tag] = message
        self.deliveries.add(delivery_tag, message)

    def get(self, delivery_tag: str) -> Any:
        """Return a message that is not settled."""
        return self._credited.get(delivery_tag) or self._delivered[delivery_tag]

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge; the server learns of it with the next flush, or at once where no event loop runs."""
        self._forget(delivery_tag)
        self.deliveries.ack(delivery_tag)
        if not self.channel.flushes_later:
            self.deliveries.flush()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Hand back to the front of the queue, or drop, which is an acknowledgement."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self._forget(delivery_tag)
        self.deliveries.requeue([delivery_tag])

    def restore_unacked(self) -> None:
        """Hand back every message of this channel that is not settled."""
        self._flush()
        tags = [*self._delivered, *self._credited]
        self._delivered.clear()
        self._credited.clear()
        self.deliveries.requeue(tags)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Stop remembering, when the channel closes: what nobody else remembers is handed back.

        Stock kombu puts every unacked message back here, also those that still run, and they run twice.
        """
        self._on_collect.cancel()
        self._flush()
        if not (self._delivered or self._credited):
            return
        self._delivered, self._credited = {}, {}
        self._quick_append = self._delivered.__setitem__
        self.deliveries.collect_soon()

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Do nothing: entries of dead consumers are claimed with the reads."""

    def _forget(self, delivery_tag: str) -> None:
        if self._credited.pop(delivery_tag, None) is None and delivery_tag in self._delivered:
            self._dirty.add(delivery_tag)
