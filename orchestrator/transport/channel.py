"""The channel: queues on streams, everything else as stock kombu's Redis channel does it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any, Final

from kombu.log import get_logger
from kombu.transport import redis as stock
from kombu.utils.json import dumps

from orchestrator.errors import InvalidEntry
from orchestrator.streams import keys
from orchestrator.streams.client import Capabilities, client_of, probe, split_socket_path
from orchestrator.streams.entries import MESSAGE_FIELD
from orchestrator.streams.group import StreamConsumer
from orchestrator.transport.deliveries import Deliveries, deliveries_of, tag_of
from orchestrator.transport.messages import message_of
from orchestrator.transport.qos import QoS
from orchestrator.transport.reader import Reader
from orchestrator.transport.reads import Entry, Plan

logger = get_logger(__name__)

#: Seconds before a server that does not answer an acknowledgement is given up.
REPLY_SECONDS: Final = 15.0

_capabilities: dict[tuple[Any, ...], Capabilities] = {}


class Channel(stock.Channel):
    """One channel; the attributes of these names can be set by transport options."""

    QoS = QoS
    consumer_name: str | None = None
    node: str | None = None
    visibility: float = 60.0
    max_deliveries: int = 16
    read_count: int = 100
    _sentinel_manager: Any
    from_transport_options = (
        *stock.Channel.from_transport_options,
        "consumer_name",
        "node",
        "visibility",
        "max_deliveries",
        "read_count",
    )

    def __init__(self, transport: Any, **kwargs: Any) -> None:
        self.transport = transport  # kombu's own reference is cut when the channel closes
        self._deliveries: Deliveries | None = None
        self._commands: Any = None
        self._stock_client: Any = None
        self.reader: Reader | None = None
        super().__init__(transport, **kwargs)
        try:
            self.group = StreamConsumer(self.commands, self._name(), self._probe())
        except BaseException:
            self.close()
            raise
        plan = Plan(prefix=self.global_keyprefix, steps=self.priority_steps, node=self.node)
        self.reader = Reader(self, plan)
        self.handlers["BRPOP"] = self.reader.read

    # Connections

    @property
    def commands(self) -> Any:
        """A client for commands on streams; kombu's own puts the key prefix in the wrong places."""
        if self._commands is None:
            self._commands = client_of(self.pool)
        return self._commands

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield a client that is made once: stock kombu makes one for each command."""
        if client is None:
            if self._stock_client is None:
                self._stock_client = self._create_client()
            client = self._stock_client
        yield client

    @property
    def has_deliveries(self) -> bool:
        """Whether anything was consumed on this channel."""
        return self._deliveries is not None

    @property
    def deliveries(self) -> Deliveries:
        """What this process has been delivered under this channel's consumer name."""
        if self._deliveries is None:
            key = (*self._server(), self.global_keyprefix, self._name())
            self._deliveries = deliveries_of(key, self._make_deliveries)
            self._deliveries.keep_within(self.visibility)
        return self._deliveries

    @property
    def flushes_later(self) -> bool:
        """Whether an event loop will flush acknowledgements."""
        return self.transport.loop is not None

    def _make_deliveries(self) -> Deliveries:
        manager = self._sentinel_manager
        pool = self._get_pool()  # not this channel's own, which ends with the channel
        self._sentinel_manager = manager
        if pool.connection_kwargs.get("socket_timeout") is None:
            pool.connection_kwargs["socket_timeout"] = REPLY_SECONDS
        return Deliveries(StreamConsumer(client_of(pool), self._name(), self._probe()))

    def _server(self) -> tuple[Any, ...]:
        parameters = self.pool.connection_kwargs
        return tuple(parameters.get(name) for name in ("path", "host", "port", "db", "username"))

    def _probe(self) -> Capabilities:
        server = self._server()
        if server not in _capabilities:
            _capabilities[server] = probe(self.commands)
        return _capabilities[server]

    def _name(self) -> str:
        if not self.consumer_name:
            self.consumer_name = f"{socket.gethostname()}:{os.getpid()}"
        return self.consumer_name

    def _socket_path(self) -> tuple[str, int]:
        info = self.connection.client
        if info.hostname not in (None, "", "localhost"):  # Celery fills in localhost where the URL has no host
            return "", 0
        return split_socket_path(str(info.virtual_host or "").lstrip("/"))

    def _prepare_virtual_host(self, vhost: Any) -> Any:
        path, database = self._socket_path()
        return database if path else super()._prepare_virtual_host(vhost)

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        path, _ = self._socket_path()
        if not path:
            return dict(super()._connparams(asynchronous))
        self.connection_class = stock.redis.UnixDomainSocketConnection
        parameters = dict(super()._connparams(asynchronous))
        for name in ("host", "port", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options"):
            parameters.pop(name, None)
        return parameters | {"path": "/" + path}

    def _disconnect_pools(self) -> None:
        self._commands = self._stock_client = None
        super()._disconnect_pools()

    # Publishing

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        step = self.priority(self._get_message_priority(message, reverse=False))
        stream = keys.priority_stream(self._stream(queue), step)
        fields = {MESSAGE_FIELD: dumps(message)}
        expires = self._expires.get(queue)
        batch = kwargs.pop("_publish_batch", None)
        if batch is not None:
            batch.add("xadd", stream, fields)
            if expires:
                for each in self.streams(queue):
                    # kombu's client puts the prefix before PEXPIRE's key, but not before XADD's.
                    batch.add("pexpire", each.removeprefix(self.global_keyprefix), expires)
        elif expires:
            with self.commands.pipeline() as pipe:
                pipe.xadd(stream, fields)
                for each in self.streams(queue):
                    pipe.pexpire(each, expires)
                pipe.execute()
        else:
            self.commands.execute_command("XADD", stream, "*", MESSAGE_FIELD, fields[MESSAGE_FIELD])

    def _put_off_expiry(self, queue: str) -> None:
        with self.commands.pipeline(transaction=False) as pipe:
            for each in self.streams(queue):
                pipe.pexpire(each, self._expires[queue])
            pipe.execute()

    # Queues

    def _stream(self, queue: str) -> str:
        return str(self.global_keyprefix) + keys.stream_of(queue)

    def streams(self, queue: str) -> list[str]:
        """Return every stream that this channel reads for a queue."""
        plan = Plan(prefix=self.global_keyprefix, steps=self.priority_steps, node=self.node)
        plan.set_queues([queue])
        return [source.stream for source in plan.sources(frozenset([queue]))]

    def _size(self, queue: str) -> int:
        return self.group.size(self.streams(queue))

    def _purge(self, queue: str) -> int:
        return self.group.purge(self.streams(queue))

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return bool(self.commands.exists(*self.streams(queue)))

    def _delete(self, queue: str, exchange: str, routing_key: str, pattern: str, *_: Any, **__: Any) -> None:
        self.auto_delete_queues.discard(queue)
        member = self.sep.join([routing_key or "", pattern or "", queue or ""])
        with self.conn_or_acquire() as client:
            client.srem(self.keyprefix_queue % (exchange,), member)
            client.srem(self.keyprefix_binding_permanent % (exchange,), member)
        self.commands.delete(*self.streams(queue))

    # Consuming

    def set_credit(self, queue: str, entries: int | None) -> None:
        """Set how many more entries of a queue may be delivered; see the transport's method."""
        self.transport.set_credit(queue, entries)

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> Any:
        """Consume a queue; entries of ``no_ack`` consumers are acknowledged when they are delivered."""
        self.transport.consumers[queue] = (callback, no_ack)
        return super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        self.transport.consumers.pop(self._tag_to_queue.get(consumer_tag), None)
        return super()._basic_cancel(consumer_tag)

    def _update_queue_cycle(self) -> None:
        queues = self.active_queues
        super()._update_queue_cycle()
        if self.reader is not None:
            self.reader.plan.set_queues(queues)
            if queues:
                self.deliveries.streams.update(stream for queue in queues for stream in self.streams(queue))

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:
        """Return one message, or None."""
        try:
            return self._get_message(queue, no_ack)
        except Empty:
            return None

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        return self._get_message(queue, no_ack=False)._raw

    def _get_message(self, queue: str, no_ack: bool) -> Any:
        plan = Plan(prefix=self.global_keyprefix, steps=self.priority_steps, node=self.node)
        plan.set_queues([queue])
        sources = plan.sources(frozenset([queue]))
        while delivered := self.deliveries.consumer.take([source.stream for source in sources], 1):
            for one in delivered:
                source = sources[one.stream]
                message = self.accept(Entry(source, one.id, one.kind, one.value, source.redelivered), no_ack)
                if message is not None:
                    return message
        raise Empty

    def accept(self, entry: Entry, no_ack: bool) -> Any:
        """Make an entry's message this channel's; None if it went to the dead-letter stream instead."""
        tag = tag_of(entry.source.stream, entry.id)
        try:
            message = message_of(entry, tag, self, max_deliveries=self.max_deliveries)
        except InvalidEntry as error:
            self.deliveries.bury(tag, str(error))
            return None
        if no_ack:
            self.deliveries.ack(tag)
            if not self.flushes_later:
                self.deliveries.flush()
        elif entry.source.queue in self.transport.credit:
            self.transport.credit.spend(entry.source.queue)
            self.qos.append_credited(message, tag)
        else:
            self.qos.append(message, tag)
        if entry.source.queue in self._expires:
            self._put_off_expiry(entry.source.queue)
        return message

    def send_reads(self, busy: bool) -> None:
        """Send what this channel wants to read."""
        if self.reader is not None and self.reader.plan.queues:
            self.reader.send(busy)

    def deliver_waiting(self) -> bool:
        """Hand out one message that was read before; whether there was one."""
        return self.reader is not None and self.reader.deliver_waiting()

    def forget_read(self) -> None:
        """The blocking connection is a new one: nothing is in flight on it."""
        self._in_poll = None
        if self.reader is not None:
            self.reader.forget()

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self._in_poll is connection:
            self.forget_read()
        super()._on_connection_disconnect(connection)

    def close(self) -> None:
        """Close; messages that nobody else remembers are handed back, those still worked on stay this process's."""
        if self.reader is not None and not self.closed:
            self.reader.close()
        super().close()
        if self._deliveries is not None:
            try:
                self._deliveries.flush()
            except (*self.connection_errors, self.ResponseError) as error:
                logger.warning("acknowledgements wait for another connection: %r", error)
