"""Drives one channel's blocking connection: sends the reads that the plan makes, and delivers what comes back."""

import random
import time
from collections import deque
from contextlib import suppress
from queue import Empty
from typing import Any, Final

from kombu.log import get_logger

from orchestrator.streams.errors import CONNECTION_ERRORS, NoScript, ReadOnly, ResponseError
from orchestrator.streams.scripts import script
from orchestrator.transport.deliveries import tag_of
from orchestrator.transport.reads import Entry, Plan, Read

logger = get_logger(__name__)

#: A small read is put off at most so many times in a row while other events are at hand.
MOST_DEFERRALS: Final = 8
#: Seconds before the next read after the server refused one.
REFUSED_SECONDS: Final = 1.0
#: Seconds for the last reply of a channel that closes.
LAST_REPLY_SECONDS: Final = 2.0


class Reader:
    """One command is in flight at most: a delivering one, or one that waits for news."""

    def __init__(self, channel: Any, plan: Plan) -> None:
        self._channel, self.plan = channel, plan
        self._read: Read | None = None
        self._inbox: deque[Entry] = deque()
        self._accepted: deque[tuple[str, Any]] = deque()  # (queue, message), this channel's and not yet handed out
        self._client_id: int | None = None
        self._deferrals = 0
        self._not_before = 0.0
        self._claim_seconds = max(0.2, min(15.0, channel.visibility / 4))
        self._claim_at = time.monotonic() + self._claim_seconds * random.random()  # noqa: S311

    def send(self, busy: bool) -> None:
        """Send the next read, if there is room for what it may bring; interrupt a wait that is about too little."""
        if self._hands_out_all and (self._inbox or self._accepted):
            self._deliver()
        budgets = self._budgets()
        if not budgets:
            return
        if self._read is not None and self._channel._in_poll:
            self._interrupt(budgets)
            return
        now = time.monotonic()
        if now < self._not_before or not self._connected():
            return
        queues = frozenset(queue for queue in self.plan.queues if self._key(queue) in budgets)
        sources = self.plan.sources(queues)
        name = self._channel.group.name
        if now >= self._claim_at:
            self._claim_at = now + self._claim_seconds * random.uniform(0.8, 1.2)  # noqa: S311
            idle_ms, most = int(self._channel.visibility * 1000), self._channel.max_deliveries
            command = self.plan.claim_command(name, sources, budgets, idle_ms=idle_ms, most=most)
            self._start(Read(sources, queues, asked=self._credit_of(budgets), claims=True), command)
        elif self.plan.has_no_news(sources):
            command = self.plan.wait_command(sources, int(self._channel.brpop_timeout * 1000) or 1000)
            self._start(Read(sources, queues, waits=True), command)
        elif busy and self._may_wait(budgets):
            self._deferrals += 1
        else:
            command = self.plan.take_command(name, sources, budgets)
            self._start(Read(sources, queues, asked=self._credit_of(budgets)), command)

    @property
    def _hands_out_all(self) -> bool:
        # Without an event loop, drain_events hands out one message a call, as every kombu transport does.
        return self._channel.transport.loop is not None

    def deliver_waiting(self) -> bool:
        """Hand out what was read for earlier calls of ``drain_events``; whether there was anything."""
        return self._deliver() if self._accepted else False

    def read(self) -> bool:
        """Read the reply in flight and deliver what it brings.

        Raises:
            Empty: If that is nothing.
        """
        read, reply = self._read, self._reply()
        if read is None or reply is None:
            self.plan.expect_news()  # a wait ended without: ask, for a stream may have been made anew meanwhile
        elif read.waits:
            self.plan.expect_news()
        else:
            self._inbox.extend(self.plan.entries(read, reply))
            self.plan.rotate()
        if not self._inbox and not self._accepted:
            self.send(busy=False)
            raise Empty
        if not self._deliver():
            raise Empty
        return True

    def forget(self) -> None:
        """The connection is lost: what it was asked for will not come."""
        if self._read is not None:
            self._channel.transport.credit.return_aside(self._read.asked)
        self._read = None
        self.plan.expect_news()

    def close(self) -> None:
        """Hand back what has been delivered to this channel and not yet been looked at."""
        channel, read = self._channel, self._read
        if read is not None and channel._in_poll and not read.waits:
            connection = channel._in_poll
            try:
                connection._sock.settimeout(LAST_REPLY_SECONDS)
                self._inbox.extend(self.plan.entries(read, self._reply() or ([], b"")))
            except (*CONNECTION_ERRORS, ResponseError, AttributeError, ValueError) as error:
                logger.debug("the last read of a closing channel is lost: %r", error)
        channel._in_poll = None
        self.forget()
        self._accepted.clear()  # forgotten by everybody, and so handed back
        if self._inbox:
            tags = [tag_of(entry.source.stream, entry.id) for entry in self._inbox]
            self._inbox.clear()
            try:
                channel.deliveries.requeue(tags)
            except (*CONNECTION_ERRORS, ResponseError) as error:
                logger.warning("%d entries are left to be reclaimed: %r", len(tags), error)

    def _budgets(self) -> dict[str | None, int]:
        """Return how many entries may be read: by queue under credit, and under None for all others together."""
        credit, most = self._channel.transport.credit, self._channel.read_count
        budgets: dict[str | None, int] = {}
        room = self._channel.qos.room()
        if room is None:  # somebody who drains by hand takes one at a time, so that others get theirs
            room = most if self._hands_out_all else 1
        plain = min(room, most)
        for queue in self.plan.queues:
            if queue in credit:
                available = min(credit.available(queue), most)
                if available:
                    budgets[queue] = available
            elif plain:
                budgets[None] = plain
        return budgets

    def _key(self, queue: str) -> str | None:
        return queue if queue in self._channel.transport.credit else None

    def _credit_of(self, budgets: dict[str | None, int]) -> dict[str, int]:
        return {queue: count for queue, count in budgets.items() if queue is not None}

    def _may_wait(self, budgets: dict[str | None, int]) -> bool:
        prefetch = self._channel.qos.prefetch_count
        return list(budgets) == [None] and budgets[None] * 2 < prefetch and self._deferrals < MOST_DEFERRALS

    def _connected(self) -> bool:
        channel = self._channel
        known = channel.client.connection
        ready: bool = channel.connection.cycle.ready_to_send(channel)
        connection = channel.client.connection
        if connection is not known or self._client_id is None:
            self._client_id = self._ask_client_id(connection) if ready else None
        return ready

    def _ask_client_id(self, connection: Any) -> int:
        connection.send_command("CLIENT", "ID")
        try:
            return int(connection.read_response())
        except ResponseError as error:
            logger.warning("waits are not interrupted when credit returns, they end within a second: %s", error)
            return 0

    def _start(self, read: Read, command: list[Any]) -> None:
        channel = self._channel
        connection = channel.client.connection
        connection.send_command(*command)
        channel.transport.credit.set_aside(read.asked)
        channel._in_poll, channel._brpop_sent_at = connection, time.monotonic()
        self._read, self._deferrals = read, 0

    def _interrupt(self, budgets: dict[str | None, int]) -> None:
        read = self._read
        if read is None or not read.waits or read.interrupted:
            return
        if all(queue in read.queues for queue in self.plan.queues if self._key(queue) in budgets):
            return
        read.interrupted = True
        if self._client_id:
            with suppress(ResponseError):  # not allowed to this user: the wait ends by itself
                self._channel.commands.execute_command("CLIENT", "UNBLOCK", self._client_id)

    def _reply(self) -> Any:
        channel, read = self._channel, self._read
        connection = channel.client.connection
        try:
            return connection.read_response()
        except ReadOnly as error:
            connection.disconnect()
            raise ConnectionError(f"the server has become a replica: {error}") from error
        except NoScript:
            for name in ("take", "claim", "ack"):
                script(name).load(channel.commands)
        except ResponseError:
            logger.exception(
                "the server refused to read %s", [source.stream for source in read.sources] if read else ""
            )
            self._not_before = time.monotonic() + REFUSED_SECONDS
        except CONNECTION_ERRORS:
            connection.disconnect()
            raise
        finally:
            channel._in_poll = None
            if self._read is not None:
                channel.transport.credit.return_aside(self._read.asked)
            self._read = None
            channel._flush_brpop_reauth()
        return None

    def _deliver(self) -> bool:
        """Hand out what was read; all of it is owned first, because handing out one may take as long as a task runs."""
        self._accept()
        consumers, accepted, delivered = self._channel.transport.consumers, self._accepted, False
        while accepted and (self._hands_out_all or not delivered):
            queue, message = accepted.popleft()
            callback, _no_ack = consumers.get(queue, (None, False))
            if callback is not None:
                delivered = True
                callback(message)
            elif not message.acknowledged:
                message.requeue()  # cancelled since it was read
        return delivered

    def _accept(self) -> None:
        channel, inbox = self._channel, self._inbox
        while inbox:
            entry = inbox.popleft()
            tag = tag_of(entry.source.stream, entry.id)
            if entry.redelivered and tag in channel.deliveries:
                continue  # its renewals were late; it is still worked on here, and claiming it has renewed it
            callback, no_ack = channel.transport.consumers.get(entry.source.queue, (None, False))
            if callback is None:
                channel.deliveries.requeue([tag])  # cancelled since it was asked for
                continue
            message = channel.accept(entry, no_ack)
            if message is not None:
                self._accepted.append((entry.source.queue, message))
