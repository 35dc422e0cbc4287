"""When each entry of beat's schedule fired last: written by the leader alone, before what it fires is sent."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from orchestrator.schedule_ports import Firing
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import required_instant, stored_instant
from orchestrator.storage.sql import Sql
from orchestrator.storage.sweeps import fenced

FIRINGS: Final = Sql("SELECT name, fired_at, task_id, is_sent FROM orchestrator_firings ORDER BY name")
BEGIN_FIRINGS: Final = Sql(
    "INSERT INTO orchestrator_firings (name, fired_at, task_id, is_sent, epoch)"
    " VALUES (:name, :fired_at, NULL, 1, :epoch) ON CONFLICT DO NOTHING",
    mysql="INSERT IGNORE INTO orchestrator_firings (name, fired_at, task_id, is_sent, epoch)"
    " VALUES (:name, :fired_at, NULL, 1, :epoch)",
)
FIRE: Final = Sql(
    "INSERT INTO orchestrator_firings (name, fired_at, task_id, is_sent, epoch)"
    " VALUES (:name, :fired_at, :task_id, 0, :epoch) ON CONFLICT (name) DO UPDATE SET"
    " fired_at = excluded.fired_at, task_id = excluded.task_id, is_sent = 0, epoch = excluded.epoch",
    mysql="INSERT INTO orchestrator_firings (name, fired_at, task_id, is_sent, epoch)"
    " VALUES (:name, :fired_at, :task_id, 0, :epoch) ON DUPLICATE KEY UPDATE"
    " fired_at = VALUES(fired_at), task_id = VALUES(task_id), is_sent = 0, epoch = VALUES(epoch)",
)
SENT: Final = Sql("UPDATE orchestrator_firings SET is_sent = 1 WHERE name = :name AND task_id = :task_id")


class SqlFirings:
    """``Firings`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def load(self) -> Mapping[str, Firing]:
        """Return every entry's latest firing."""
        rows = self._database.read(lambda connection: self._database.run(connection, FIRINGS).all())
        return {
            row.name: Firing(required_instant(row.fired_at), row.task_id, is_sent=bool(row.is_sent)) for row in rows
        }

    def begin(self, names: Mapping[str, datetime], *, epoch: int) -> None:
        """Note from when on entries count that have never fired."""
        rows = [{"name": name, "fired_at": stored_instant(at), "epoch": epoch} for name, at in names.items()]

        def write(connection: Connection) -> None:
            if rows:
                self._database.run(connection, BEGIN_FIRINGS, rows)

        fenced(self._database, epoch, write)

    def fire(self, name: str, fired_at: datetime, task_id: str, *, epoch: int) -> None:
        """Note a firing that is about to be sent."""
        values = {"name": name, "fired_at": stored_instant(fired_at), "task_id": task_id, "epoch": epoch}
        fenced(self._database, epoch, lambda connection: self._database.run(connection, FIRE, values))

    def sent(self, name: str, task_id: str) -> None:
        """Note that it was sent."""
        values = {"name": name, "task_id": task_id}
        self._database.transaction(lambda connection: self._database.run(connection, SENT, values))
