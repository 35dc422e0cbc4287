"""A database whose clock a test sets: every statement that asks for the time reads a table in place of the clock."""

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.storage import sql
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import required_instant, stored_instant

START = datetime(2030, 1, 1, tzinfo=UTC)
_AT = "(SELECT at FROM scripted_clock)"
_SQLITE_SHIFTED = f"(strftime('%Y-%m-%d %H:%M:%f', {_AT}, SHIFT) || '000')"
MARKS = {
    "mysql": {
        "now": _AT,
        "now_plus": f"({_AT} + INTERVAL ? SECOND)",
        "now_minus": f"({_AT} - INTERVAL ? SECOND)",
    },
    "sqlite": {
        "now": _AT,
        "now_plus": _SQLITE_SHIFTED.replace("SHIFT", "? || ' seconds'"),
        "now_minus": _SQLITE_SHIFTED.replace("SHIFT", "printf('%+.6f seconds', -?)"),
    },
}


class ScriptedClock:
    """The database's clock, which stands still until it is told to go on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        kind = "DATETIME(6)" if database.dialect == "mysql" else "TEXT"
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE scripted_clock (at {kind} NOT NULL)")
            connection.exec_driver_sql(f"INSERT INTO scripted_clock VALUES ('{stored_instant(START)}')")

    def now(self) -> datetime:
        """Return the instant."""
        return self._database.read(
            lambda c: required_instant(c.exec_driver_sql("SELECT at FROM scripted_clock").scalar_one())
        )

    def advance(self, by: timedelta) -> datetime:
        """Let time pass; return the instant."""
        at = self.now() + by
        with self._database.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE scripted_clock SET at = '{stored_instant(at)}'")
        return at


def script_clocks(patch: pytest.MonkeyPatch) -> None:
    """Have every statement of this process read the table, until the patch is undone and ``forget`` is called."""
    patch.setattr(sql, "_MYSQL", sql._MYSQL | MARKS["mysql"])
    patch.setattr(sql, "_SQLITE", sql._SQLITE | MARKS["sqlite"])
    forget()


def forget() -> None:
    """Drop the texts of statements made so far: they name one clock or the other."""
    sql.Sql._parts.cache_clear()
