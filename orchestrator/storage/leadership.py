"""Who leads: one row, whose epoch fences every sweep, and a lock that says at once when the leader is gone."""

import threading
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from orchestrator.leader_ports import Term
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import dump, instant
from orchestrator.storage.session_lock import SessionLock, session_lock
from orchestrator.storage.sql import Sql

ROW_FOR_UPDATE: Final = Sql(
    "SELECT holder, epoch, since, guarded, expires_at > {now} AS live FROM orchestrator_leadership"
    " WHERE name = 'sweeps' {for_update}"
)
ROW: Final = Sql(
    "SELECT holder, epoch, since, guarded, expires_at > {now} AS live FROM orchestrator_leadership"
    " WHERE name = 'sweeps'"
)
FIRST: Final = Sql(
    "INSERT INTO orchestrator_leadership (name, holder, epoch, since, expires_at, guarded)"
    " VALUES ('sweeps', :holder, 1, {now}, {now_plus:ttl}, :guarded)"
)
RENEW: Final = Sql(
    "UPDATE orchestrator_leadership SET expires_at = {now_plus:ttl}, guarded = :guarded"
    " WHERE name = 'sweeps' AND epoch = :epoch"
)
TAKE_OVER: Final = Sql(
    "UPDATE orchestrator_leadership SET holder = :holder, epoch = epoch + 1, since = {now},"
    " expires_at = {now_plus:ttl}, guarded = :guarded WHERE name = 'sweeps' AND epoch = :epoch"
)
RESIGN: Final = Sql(
    "UPDATE orchestrator_leadership SET expires_at = {now}, guarded = 0 WHERE name = 'sweeps' AND holder = :holder AND"
    " epoch = :epoch"
)
#: Each term's first line, written under the row's lock: what a leader writes later lies between its own and the next.
EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, epoch, data) VALUES ({now}, 'leader', :epoch, :holder)")


class SqlLeadership:
    """``Leadership`` over SQL; instants are the database's own."""

    def __init__(self, database: Database, *, lock: SessionLock | None = None) -> None:
        self._database = database
        self._lock = lock or session_lock(database.engine)
        self._locked_by: str | None = None  # of the candidates of this process
        self._turn = threading.Lock()

    def campaign(self, holder: str, *, ttl: timedelta) -> Term:
        """Renew the term, or take over if the row has expired or its holder's session has ended."""
        guarded = self._take_lock(holder)
        values = {"holder": holder, "ttl": ttl.total_seconds(), "guarded": int(guarded)}
        try:
            term = self._database.transaction(lambda connection: self._campaign(connection, values))
        except IntegrityError:  # two processes made the first row at once
            term = self._database.transaction(lambda connection: self._campaign(connection, values))
        if not term.mine:
            self._release_lock(holder)
        return term

    def resign(self, holder: str, epoch: int) -> None:
        """End the term now, so that another need not wait for its expiry."""
        values = {"holder": holder, "epoch": epoch}
        try:
            self._database.transaction(lambda connection: self._database.run(connection, RESIGN, values).rowcount)
        finally:
            self._release_lock(holder)

    def current(self) -> Term | None:
        """Return the live term, if there is one."""
        row = self._database.read(lambda connection: self._database.run(connection, ROW).mappings().first())
        return _term(row, mine=False) if row is not None and row["live"] else None

    def is_deserted(self, holder: str) -> bool:
        """The lock of whoever leads could be taken; ``holder`` keeps it for its campaign."""
        return self._take_lock(holder)

    def is_shaken(self, holder: str) -> bool:
        """The server has closed the session that holds the lock."""
        if self._locked_by != holder or not self._turn.acquire(blocking=False):
            return False
        try:
            return self._lock.is_lost()
        finally:
            self._turn.release()

    def close(self) -> None:
        """Give the lock back."""
        with self._turn:
            self._lock.release()
            self._locked_by = None

    def _take_lock(self, holder: str) -> bool:
        with self._turn:
            if self._locked_by not in (None, holder):
                return False
            self._locked_by = holder if self._lock.take() else None
            return self._locked_by is not None

    def _release_lock(self, holder: str) -> None:
        with self._turn:
            if self._locked_by == holder:
                self._lock.release()
                self._locked_by = None

    def _campaign(self, connection: Connection, values: dict[str, Any]) -> Term:
        run = self._database.run
        row = run(connection, ROW_FOR_UPDATE).mappings().first()
        if row is None:
            run(connection, FIRST, values)
            return self._begin(connection, values["holder"], 1)
        if row["live"] and row["holder"] == values["holder"]:
            run(connection, RENEW, values | {"epoch": row["epoch"]})
            return _term(row, mine=True)
        # Who led said that it held the lock, and it is ours: its session has ended.
        is_deserted = bool(row["guarded"] and values["guarded"])
        if row["live"] and not is_deserted:
            return _term(row, mine=False)
        run(connection, TAKE_OVER, values | {"epoch": row["epoch"]})
        return self._begin(connection, values["holder"], row["epoch"] + 1)

    def _begin(self, connection: Connection, holder: str, epoch: int) -> Term:
        values = {"epoch": epoch, "holder": dump({"holder": holder, "epoch": epoch})}
        self._database.run(connection, EVENT, values)
        return Term(holder, epoch, mine=True)


def _term(row: Any, *, mine: bool) -> Term:
    return Term(row["holder"], row["epoch"], mine=mine, since=instant(row["since"]), guarded=bool(row["guarded"]))
