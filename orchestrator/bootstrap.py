"""Put a process together: the ports bound to SQL and Redis, as the settings say."""

import fcntl
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from orchestrator.clock import SystemClock
from orchestrator.config import Settings
from orchestrator.errors import InvalidSettings
from orchestrator.runtime import Runtime
from orchestrator.storage.access import SqlAccessStore
from orchestrator.storage.adhoc import SqlAdHocLeases
from orchestrator.storage.admission import SqlAdmissionStore
from orchestrator.storage.cluster import SqlClusterStore
from orchestrator.storage.dead_letters import SqlDeadLetterStore
from orchestrator.storage.engine import open_database
from orchestrator.storage.event_feed import SqlEventStore
from orchestrator.storage.firings import SqlFirings
from orchestrator.storage.job_control import SqlJobControl
from orchestrator.storage.job_times import SqlJobTimes
from orchestrator.storage.jobs import SqlJobStore
from orchestrator.storage.leadership import SqlLeadership
from orchestrator.storage.ledger import SqlLedgerStore
from orchestrator.storage.lent_use import LentUsePolicy
from orchestrator.storage.pools import SqlPoolStore
from orchestrator.storage.purges import SqlJobPurge
from orchestrator.storage.queue_control import SqlPolicyStore, SqlQueueControl
from orchestrator.storage.schema import upgrade
from orchestrator.storage.sweep_log import SqlSweepLog
from orchestrator.storage.totals import SqlTallies
from orchestrator.storage.usage import SqlUsageStore
from orchestrator.stream_ports import WakeListener
from orchestrator.streams.client import connect
from orchestrator.streams.gauge import RedisStreamGauge
from orchestrator.streams.publisher import RedisStreamPublisher
from orchestrator.streams.wake import RedisWake
from orchestrator.streams.wake import WakeListener as RedisWakeListener

logger = logging.getLogger(__name__)


def open_runtime(settings: Settings) -> Runtime:
    """Return the process's runtime; nothing is connected before it is used, so servers may come up later.

    The embedded default database is created on first use; any other one is upgraded by ``orch db upgrade`` alone.

    Raises:
        InvalidSettings: If a URL is malformed or names something that is not supported.
    """
    if not settings.database_url.get_secret_value():
        _create_embedded_database(settings)
    database = open_database(settings.database)
    try:
        client = connect(settings.redis)
    except ValueError as error:
        raise InvalidSettings([f"redis_url: {error}"]) from error
    leadership = SqlLeadership(database)
    return Runtime(
        settings=settings,
        clock=SystemClock(),
        jobs=SqlJobStore(database),
        ledger=SqlLedgerStore(database, max_lost=settings.max_lost),
        cluster=SqlClusterStore(database, max_lost=settings.max_lost, lent_use=_lent_use(settings)),
        admission=SqlAdmissionStore(database, recheck=settings.recheck_delta),
        leadership=leadership,
        sweep_log=SqlSweepLog(database),
        firings=SqlFirings(database),
        usage=SqlUsageStore(database),
        letters=SqlDeadLetterStore(database),
        control=SqlJobControl(database),
        purges=SqlJobPurge(database),
        queues=SqlQueueControl(database),
        policy=SqlPolicyStore(database),
        events=SqlEventStore(database),
        access=SqlAccessStore(database),
        times=SqlJobTimes(database),
        tallies=SqlTallies(database),
        leases=SqlAdHocLeases(database),
        pools=SqlPoolStore(database),
        publisher=RedisStreamPublisher(client),
        streams=RedisStreamGauge(client),
        wake=_ListeningWake(client, settings.redis),
        close=partial(_close, client, leadership, database),
    )


def _lent_use(settings: Settings) -> LentUsePolicy:
    return LentUsePolicy(settings.idle_gpu_percent, settings.idle_gpu_warn)


def _close(*parts: Any) -> None:
    for part in parts:
        part.close()


class _ListeningWake(RedisWake):
    """Publishes on the shared client; each listener has a connection of its own."""

    def __init__(self, client: Any, url: str) -> None:
        super().__init__(client)
        self._url = url

    def listen(self, callback: Callable[[str, Mapping[str, object]], None]) -> WakeListener:
        """Call back, in a thread of its own, with the kind and data of every message."""
        listener = RedisWakeListener(self._url, callback)
        listener.start()
        return listener


def _create_embedded_database(settings: Settings) -> None:
    """Create the home's SQLite database if it is not there; several processes may come here at once.

    The lock is taken even when the file exists: another process may be in the middle of creating it.
    """
    path = settings.home / "orchestrator.db"
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.home / "orchestrator.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or not path.stat().st_size:
            logger.info("creating the database %s at %s", path, upgrade(settings.database))
