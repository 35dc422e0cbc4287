"""Accounting: leases of a window with what ran under them, in batches, and what was measured of attempts that run."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.job import LeaseMode
from orchestrator.domain.lease import Measured
from orchestrator.domain.usage import AttemptUse, HolderUse, LeaseUse
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump_parts, instant, required_instant, stored_instant
from orchestrator.storage.sql import Sql

BATCH: Final = 1000
NOW: Final = Sql("SELECT {now} AS now")
#: Only leases of GPUs: who asks for none uses none.
LEASES: Final = Sql(
    "SELECT l.id, l.node, l.mode, l.memory_mib, l.granted_at, l.ended_at, h.tenant, h.holder"
    " FROM orchestrator_leases l LEFT JOIN orchestrator_lease_holders h ON h.lease_id = l.id WHERE l.id > :after"
    " AND granted_at < :until AND (ended_at IS NULL OR ended_at > :since)"
    " AND EXISTS (SELECT 1 FROM orchestrator_lease_gpus g WHERE g.lease_id = l.id) ORDER BY l.id LIMIT :limit"
)
CARDS: Final = Sql(
    "SELECT h.lease_id, h.gpu_uuid, g.memory_mib FROM orchestrator_lease_gpus h"
    " LEFT JOIN orchestrator_gpus g ON g.uuid = h.gpu_uuid WHERE h.lease_id IN :ids ORDER BY h.gpu_uuid",
    "ids",
)
ATTEMPTS: Final = Sql(
    "SELECT a.lease_id, j.id, j.tenant, j.submitted_by, j.queue, COALESCE(a.started_at, a.claimed_at) AS begun_at,"
    " a.ended_at, a.outcome, a.gpu_busy_seconds FROM orchestrator_attempts a"
    " JOIN orchestrator_jobs j ON j.seq = a.job_seq WHERE a.lease_id IN :ids ORDER BY a.lease_id, a.job_seq, a.number",
    "ids",
)
#: Also of an attempt whose worker is lost: what ends it then knows no more, and leaves these figures.
NOTE_MEASURED: Final = Sql(
    "UPDATE orchestrator_attempts SET gpu_busy_seconds = COALESCE(r.busy, gpu_busy_seconds),"
    " peak_gpu_memory_mib = COALESCE(r.peak, peak_gpu_memory_mib)"
    " FROM (SELECT json_extract(value, '$.q') AS seq, json_extract(value, '$.n') AS number,"
    " json_extract(value, '$.l') AS lease_id, json_extract(value, '$.b') AS busy, json_extract(value, '$.v') AS peak"
    " FROM json_each(:rows)) AS r WHERE orchestrator_attempts.job_seq = r.seq"
    " AND orchestrator_attempts.number = r.number AND orchestrator_attempts.lease_id = r.lease_id AND ended_at IS NULL",
    mysql="UPDATE orchestrator_attempts a JOIN JSON_TABLE(:rows, '$[*]' COLUMNS (seq BIGINT PATH '$.q',"
    " number INT PATH '$.n', lease_id BIGINT PATH '$.l', busy DOUBLE PATH '$.b', peak INT PATH '$.v')) r"
    " ON a.job_seq = r.seq AND a.number = r.number AND a.lease_id = r.lease_id"
    " SET a.gpu_busy_seconds = COALESCE(r.busy, a.gpu_busy_seconds),"
    " a.peak_gpu_memory_mib = COALESCE(r.peak, a.peak_gpu_memory_mib) WHERE a.ended_at IS NULL",
)


def note_measured(database: Database, connection: Connection, measured: Sequence[Measured]) -> None:
    """Write what was measured of attempts so far; one that has ended keeps what its end told."""
    rows = [
        {"q": one.job_seq, "n": one.attempt, "l": one.lease_id}
        | {"b": one.gpu_busy_seconds, "v": one.peak_gpu_memory_mib}
        for one in sorted(measured, key=lambda one: (one.job_seq, one.attempt))
    ]
    for part in dump_parts(rows):
        database.run(connection, NOTE_MEASURED, {"rows": part})


class SqlUsageStore:
    """``UsageStore`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> datetime:
        """Return the database's clock."""
        return required_instant(self._database.read(lambda c: self._database.run(c, NOW, {}).scalar_one()))

    def leases(self, *, since: datetime, until: datetime) -> Iterator[LeaseUse]:
        """Yield the GPU leases that overlap the window, by their id."""
        after = 0
        window = {"since": stored_instant(since), "until": stored_instant(until), "limit": BATCH}
        while True:
            found = self._database.read(lambda c, after=after: self._page(c, window | {"after": after}))  # type: ignore[misc]
            yield from found
            if len(found) < BATCH:
                return
            after = found[-1].id

    def _page(self, connection: Connection, window: dict[str, Any]) -> list[LeaseUse]:
        run = self._database.run
        leases = run(connection, LEASES, window).all()
        if not leases:
            return []
        ids = [row.id for row in leases]
        cards: defaultdict[int, list[Any]] = defaultdict(list)
        for row in run(connection, CARDS, {"ids": ids}):
            cards[row.lease_id].append(row)
        attempts: defaultdict[int, list[AttemptUse]] = defaultdict(list)
        for row in run(connection, ATTEMPTS, {"ids": ids}):
            attempts[row.lease_id].append(_attempt(row))
        return [
            LeaseUse(
                id=row.id,
                node=row.node,
                granted_at=required_instant(row.granted_at),
                ended_at=instant(row.ended_at),
                shares=tuple((card.gpu_uuid, _share(row, card.memory_mib)) for card in cards[row.id]),
                attempts=tuple(attempts[row.id]),
                holder=None if row.holder is None else HolderUse(row.id, row.tenant, row.holder),
            )
            for row in leases
        ]


def _share(lease: Any, memory_mib: int | None) -> float:
    """Return the part of a GPU that a lease has; all of one that is known no more."""
    if lease.mode != LeaseMode.SHARED.value or not memory_mib:
        return 1.0
    return float(lease.memory_mib / memory_mib)


def _attempt(row: Any) -> AttemptUse:
    return AttemptUse(
        job_id=row.id,
        tenant=row.tenant,
        user=row.submitted_by,
        queue=row.queue,
        begun_at=required_instant(row.begun_at),
        ended_at=instant(row.ended_at),
        outcome=row.outcome,
        busy_gpu_seconds=row.gpu_busy_seconds,
    )
