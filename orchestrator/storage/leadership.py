"""Who leads: one row, whose epoch fences every sweep."""

from datetime import timedelta
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from orchestrator.ports import Term
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump
from orchestrator.storage.sql import Sql

ROW_FOR_UPDATE: Final = Sql(
    "SELECT holder, epoch, expires_at > {now} AS live FROM orchestrator_leadership WHERE name = 'sweeps' {for_update}"
)
ROW: Final = Sql("SELECT holder, epoch, expires_at > {now} AS live FROM orchestrator_leadership WHERE name = 'sweeps'")
FIRST: Final = Sql(
    "INSERT INTO orchestrator_leadership (name, holder, epoch, expires_at) VALUES ('sweeps', :holder, 1,"
    " {now_plus:ttl})"
)
RENEW: Final = Sql(
    "UPDATE orchestrator_leadership SET expires_at = {now_plus:ttl} WHERE name = 'sweeps' AND epoch = :epoch"
)
TAKE_OVER: Final = Sql(
    "UPDATE orchestrator_leadership SET holder = :holder, epoch = epoch + 1, expires_at = {now_plus:ttl}"
    " WHERE name = 'sweeps' AND epoch = :epoch"
)
RESIGN: Final = Sql(
    "UPDATE orchestrator_leadership SET expires_at = {now} WHERE name = 'sweeps' AND holder = :holder AND"
    " epoch = :epoch"
)
#: Each term's first line, written under the row's lock: what a leader writes later lies between its own and the next.
EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, epoch, data) VALUES ({now}, 'leader', :epoch, :holder)")


class SqlLeadership:
    """``Leadership`` over SQL; instants are the database's own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def campaign(self, holder: str, *, ttl: timedelta) -> Term:
        """Renew the term, or take over if the row has expired."""
        try:
            return self._database.transaction(
                lambda connection: self._campaign(connection, holder, ttl.total_seconds())
            )
        except IntegrityError:  # two processes made the first row at once
            return self._database.transaction(
                lambda connection: self._campaign(connection, holder, ttl.total_seconds())
            )

    def resign(self, holder: str, epoch: int) -> None:
        """End the term now, so that another need not wait for its expiry."""
        values = {"holder": holder, "epoch": epoch}
        self._database.transaction(lambda connection: self._database.run(connection, RESIGN, values).rowcount)

    def current(self) -> Term | None:
        """Return the live term, if there is one."""
        row = self._database.read(lambda connection: self._database.run(connection, ROW).first())
        return Term(row.holder, row.epoch, mine=False) if row is not None and row.live else None

    def _campaign(self, connection: Connection, holder: str, ttl: float) -> Term:
        run = self._database.run
        row = run(connection, ROW_FOR_UPDATE).first()
        if row is None:
            run(connection, FIRST, {"holder": holder, "ttl": ttl})
            return self._begin(connection, holder, 1)
        if row.live and row.holder == holder:
            run(connection, RENEW, {"epoch": row.epoch, "ttl": ttl})
            return Term(holder, row.epoch, mine=True)
        if row.live:
            return Term(row.holder, row.epoch, mine=False)
        run(connection, TAKE_OVER, {"holder": holder, "epoch": row.epoch, "ttl": ttl})
        return self._begin(connection, holder, row.epoch + 1)

    def _begin(self, connection: Connection, holder: str, epoch: int) -> Term:
        values = {"epoch": epoch, "holder": dump({"holder": holder, "epoch": epoch})}
        self._database.run(connection, EVENT, values)
        return Term(holder, epoch, mine=True)
