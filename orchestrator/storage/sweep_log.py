"""What the leader's sweeps did: one row a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from orchestrator.domain.sweep import SweepRecord, SweepTally
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import required_instant, storable
from orchestrator.storage.sql import Sql

_INSERT: Final = (
    "INSERT INTO orchestrator_sweeps (name, passes, did, failures, seconds, last_at, last_did, last_seconds,"
    " last_error, epoch) VALUES (:name, :passes, :did, :failures, :seconds, {now}, :last_did, :last_seconds,"
    " :last_error, :epoch)"
)
NOTE: Final = Sql(
    _INSERT + " ON CONFLICT (name) DO UPDATE SET passes = passes + excluded.passes, did = did + excluded.did,"
    " failures = failures + excluded.failures, seconds = seconds + excluded.seconds, last_at = excluded.last_at,"
    " last_did = excluded.last_did, last_seconds = excluded.last_seconds, last_error = excluded.last_error,"
    " epoch = excluded.epoch",
    mysql=_INSERT + " ON DUPLICATE KEY UPDATE passes = passes + VALUES(passes), did = did + VALUES(did),"
    " failures = failures + VALUES(failures), seconds = seconds + VALUES(seconds), last_at = VALUES(last_at),"
    " last_did = VALUES(last_did), last_seconds = VALUES(last_seconds), last_error = VALUES(last_error),"
    " epoch = VALUES(epoch)",
)
READ: Final = Sql("SELECT * FROM orchestrator_sweeps ORDER BY name")
LONGEST_ERROR: Final = 512


class SqlSweepLog:
    """``SweepLog`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, tallies: Mapping[str, SweepTally], *, epoch: int | None) -> None:
        """Add passes; a reply that is lost may count them twice."""
        rows = [_row(name, tally, epoch) for name, tally in sorted(tallies.items()) if tally.passes]

        def write(connection: Connection) -> None:
            for row in rows:
                self._database.run(connection, NOTE, row)

        if rows:
            self._database.transaction(write)

    def read(self) -> Sequence[SweepRecord]:
        """Return the record of each sweep."""
        rows = self._database.read(lambda connection: self._database.run(connection, READ).mappings().all())
        return [SweepRecord(**{**row, "last_at": required_instant(row["last_at"])}) for row in rows]


def _row(name: str, tally: SweepTally, epoch: int | None) -> dict[str, Any]:
    error = storable(tally.last_error)
    return {
        "name": name,
        "passes": tally.passes,
        "did": tally.did,
        "failures": tally.failures,
        "seconds": tally.seconds,
        "last_did": tally.last_did,
        "last_seconds": tally.last_seconds,
        "last_error": error[:LONGEST_ERROR] if error else None,
        "epoch": epoch,
    }
