"""A lock that the operating system or the database takes back the moment its holder is gone.

It proves nothing about who leads: a holder that was stopped keeps it, and one whose connection broke loses it without a
word. But who gets it knows that the session of the one that held it before has ended, and need not wait for anything to
expire. The row and its epoch stay the authority: docs/decisions/0014-leader-session-lock.md.
"""

import fcntl
import hashlib
import logging
import os
import select
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

logger = logging.getLogger(__name__)

#: A holder that the server cannot reach any more loses the lock after so many seconds; it asks more often than that.
IDLE_SECONDS: Final = 60
_TAKE: Final = "SELECT GET_LOCK(%s, 0)"
_STILL_MINE: Final = "SELECT IS_USED_LOCK(%s) = CONNECTION_ID()"
_RELEASE: Final = "SELECT RELEASE_LOCK(%s)"


class SessionLock(Protocol):
    """Not to be used by two threads at once, but for ``is_lost``."""

    def take(self) -> bool:
        """Take it, or make sure that it is still held; False when somebody else has it or nobody can say."""
        ...

    def release(self) -> None:
        """Give it back; nothing happens if it is not held."""
        ...

    def is_lost(self) -> bool:
        """It was held, and is known not to be any more; asks nobody."""
        ...


def session_lock(engine: Engine) -> SessionLock:
    """Return the lock of an engine's database."""
    database = engine.url.database or ""
    if engine.dialect.name in ("mysql", "mariadb"):
        return ServerLock(engine, database)
    return FileLock(Path(f"{database}.leader")) if database not in ("", ":memory:") else NoLock()


class NoLock:
    """For a database that no other process can see."""

    def take(self) -> bool:
        """Nobody can be told apart."""
        return False

    def release(self) -> None:
        """Nothing is held."""

    def is_lost(self) -> bool:
        """Nothing is held."""
        return False


class FileLock:
    """``flock`` beside an SQLite file: whoever uses it runs on the same host."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> bool:
        """Take it if nobody has it."""
        if self._file is not None:
            return True
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            logger.info("a leader's death is noticed by its row alone: %s", error)
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Close the file, and with it the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def is_lost(self) -> bool:
        """The kernel takes it back with the process alone."""
        return False


class ServerLock:
    """``GET_LOCK`` on a connection of its own."""

    def __init__(self, engine: Engine, database: str) -> None:
        self._engine = engine
        # Such locks are the server's, not the database's, and their names are short.
        self._name = "orchestrator:leader:" + hashlib.sha256(database.encode()).hexdigest()[:32]
        self._connection: Connection | None = None
        self._held = False
        self._socket: int | None = None

    def take(self) -> bool:
        """Ask the server, on the connection that holds it or on a new one."""
        if self._held and self._is_still_mine():
            return True
        try:
            self._held = self._ask(self._connection or self._connect(), _TAKE) == 1
        except SQLAlchemyError as error:
            # Without it a takeover waits for the row to expire, and nothing else changes.
            logger.info("the leader's lock cannot be asked for: %s", type(error).__name__)
            self._close()
        return self._held

    def release(self) -> None:
        """Give it back and close the connection."""
        if self._connection is not None and self._held:
            with suppress(SQLAlchemyError):  # a broken connection has given it back
                self._ask(self._connection, _RELEASE)
        self._close()

    def is_lost(self) -> bool:
        """The server has closed the connection that holds it."""
        socket = self._socket
        if not self._held or socket is None:
            return False
        poll = select.poll()
        poll.register(socket, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))

    def _is_still_mine(self) -> bool:
        assert self._connection is not None
        try:
            is_mine = self._ask(self._connection, _STILL_MINE) == 1
        except SQLAlchemyError as error:
            logger.warning("the session that held the leader's lock has ended: %s", type(error).__name__)
            is_mine = False
        if not is_mine:
            self._close()
        return is_mine

    def _connect(self) -> Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        raw = getattr(connection.connection.driver_connection, "_sock", None)
        connection.detach()  # it is never lent to anybody else
        self._connection = connection
        self._socket = raw.fileno() if raw is not None else None
        connection.exec_driver_sql(f"SET SESSION wait_timeout = {IDLE_SECONDS}")
        return connection

    def _ask(self, connection: Connection, question: str) -> int | None:
        answer: int | None = connection.exec_driver_sql(question, (self._name,)).scalar()
        return answer

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        self._held, self._socket = False, None
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()
