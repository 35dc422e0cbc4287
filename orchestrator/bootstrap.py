"""The one place where ports meet their implementations."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from orchestrator.clock import SystemClock
from orchestrator.config import Settings
from orchestrator.ports import WakeListener
from orchestrator.runtime import Runtime
from orchestrator.storage.admission import SqlAdmissionStore
from orchestrator.storage.cluster import SqlClusterStore
from orchestrator.storage.engine import open_database
from orchestrator.storage.jobs import SqlJobStore
from orchestrator.storage.leadership import SqlLeadership
from orchestrator.storage.ledger import SqlLedgerStore
from orchestrator.streams import wake as streams_wake
from orchestrator.streams.client import connect
from orchestrator.streams.publisher import RedisStreamPublisher


class _Wake(streams_wake.RedisWake):
    """The wake channel of one Redis, with listeners at its URL."""

    def __init__(self, client: Any, url: str) -> None:
        super().__init__(client)
        self._url = url

    def listen(self, callback: Callable[[str, Mapping[str, Any]], None]) -> WakeListener:
        """Listen in a thread of its own."""
        listener = streams_wake.WakeListener(self._url, callback)
        listener.start()
        return listener


def open_runtime(settings: Settings) -> Runtime:
    """Return the outside world that the settings name; nothing is connected until it is used.

    Raises:
        InvalidSettings: If a URL is malformed.
    """
    database = open_database(settings.database)
    client = connect(settings.redis)

    def close() -> None:
        database.close()
        client.close()

    return Runtime(
        settings=settings,
        clock=SystemClock(),
        jobs=SqlJobStore(database),
        ledger=SqlLedgerStore(database, max_lost=settings.max_lost),
        cluster=SqlClusterStore(database),
        admission=SqlAdmissionStore(database, recheck=timedelta(seconds=settings.recheck_interval)),
        leadership=SqlLeadership(database),
        publisher=RedisStreamPublisher(client),
        wake=_Wake(client, settings.redis),
        close=close,
    )
