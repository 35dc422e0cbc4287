"""Connections: how they are set up for each database, and how a unit of work is run and retried."""

import itertools
import logging
import os
import random
import re
import sqlite3
import time
import weakref
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias, TypeVar

from pymysql.constants import CLIENT
from sqlalchemy import Connection, CursorResult, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError

from orchestrator.errors import InvalidSettings, StoreUnavailable
from orchestrator.storage.sql import Sql

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: MariaDB: lock wait timeout, deadlock, record changed since the snapshot, server gone, connection lost, server shut
#: down.
RETRIED_CODES: Final = frozenset({1205, 1213, 1020, 2006, 2013, 1053, 1927, 4031})
MOST_TRIES: Final = 5
#: A unit of work is not begun again after so many seconds: its caller has deadlines of its own.
LONGEST_TRIES: Final = 10.0
#: SQLite: the file, or a table of it, is locked by another connection (the low byte of the extended codes).
_SQLITE_RETRIED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

#: MariaDB answers with its version, whether Galera replicates writes, and how many servers take part.
_SERVER_FACTS: Final = (
    "SELECT VERSION(), (SELECT MAX(VARIABLE_VALUE) FROM information_schema.GLOBAL_VARIABLES"
    " WHERE VARIABLE_NAME = 'WSREP_ON'), (SELECT MAX(VARIABLE_VALUE) FROM information_schema.GLOBAL_STATUS"
    " WHERE VARIABLE_NAME = 'WSREP_CLUSTER_SIZE')"
)
_MARIADB_SESSION: Final = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = 3, lock_wait_timeout = 5,"
    " idle_transaction_timeout = 5",
)
_SQLITE_SESSION: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA foreign_keys = ON",
)


#: Of a connection's own notes: nothing has been done with it since it committed.
_COMMITTED: Final = "committed"
#: Counted rows are those that a write matches, as SQLAlchemy has it, and several statements may come in one packet.
_MARIADB_CLIENT: Final = CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS

_END: Final = Sql("COMMIT")

Step: TypeAlias = tuple[Sql, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of several statements that were sent together came to."""

    rowcount: int
    rows: Sequence[Any] = ()  # with the columns' names as attributes


class Database:
    """One database and its pool of connections; safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dialect = "mysql" if engine.dialect.name in ("mysql", "mariadb") else "sqlite"

    def transaction(self, unit: Callable[[Connection], Result]) -> Result:
        """Run a unit of work in one transaction and return what it returns.

        Deadlocks, lock waits and lost connections roll the whole unit back and run it again, a few times, with jitter.
        A connection lost during the commit itself leaves open whether it took effect: units find that out themselves.

        Raises:
            StoreUnavailable: If the database did not take it.
        """

        def attempt(connection: Connection) -> Result:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            result = unit(connection)
            connection.commit()
            connection.info[_COMMITTED] = True
            return result

        return self._with_retries(attempt)

    def read(self, unit: Callable[[Connection], Result]) -> Result:
        """Run a unit of work that only reads.

        Raises:
            StoreUnavailable: If the database did not answer.
        """
        return self._with_retries(unit)

    def _with_retries(self, unit: Callable[[Connection], Result]) -> Result:
        began = time.monotonic()
        for attempt in itertools.count(1):
            try:
                with self.engine.connect() as connection:
                    return unit(connection)
            except IntegrityError:
                raise
            except DBAPIError as error:
                late = attempt == MOST_TRIES or time.monotonic() - began > LONGEST_TRIES
                if late or not _may_pass(error):
                    raise StoreUnavailable(_reason(error)) from error
                logger.info("a unit of work is tried again: %s", _reason(error))
                time.sleep(random.uniform(0.005, 0.05) * attempt)  # noqa: S311
        raise AssertionError("unreachable")

    def run(
        self, connection: Connection, statement: Sql, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] = ()
    ) -> CursorResult[Any]:
        """Execute a statement in this database's dialect, once, or for each of several rows."""
        if isinstance(parameters, Mapping):
            return connection.exec_driver_sql(*statement.with_values(self.dialect, parameters))
        if not parameters:
            return connection.exec_driver_sql(*statement.with_values(self.dialect, {}))
        return connection.exec_driver_sql(*statement.with_rows(self.dialect, parameters))

    def run_together(self, connection: Connection, steps: Sequence[Step]) -> list[Answer]:
        """Execute statements in order, up to the first that fails; on MariaDB in one round trip."""
        if self.dialect == "sqlite" or len(steps) < 2:
            results = [self.run(connection, *step) for step in steps]
            return [Answer(done.rowcount, done.all() if done.returns_rows else ()) for done in results]
        if not connection.in_transaction():
            connection.begin()
        return self._send_together(connection, steps)

    def _send_together(self, connection: Connection, steps: Sequence[Step]) -> list[Answer]:
        texts, parameters = zip(*(statement.with_values("mysql", values) for statement, values in steps), strict=True)
        text, bound = "; ".join(texts), tuple(itertools.chain.from_iterable(parameters))
        driver, dialect = connection.connection.dbapi_connection, self.engine.dialect
        assert driver is not None
        cursor = driver.cursor()
        try:
            cursor.execute(text, bound)
            answers = [_answer(cursor)]
            while cursor.nextset():
                answers.append(_answer(cursor))
        except dialect.loaded_dbapi.Error as error:
            lost = dialect.is_disconnect(error, driver, cursor)
            if lost:
                connection.invalidate(error)
            raise DBAPIError.instance(
                text, bound, error, dialect.loaded_dbapi.Error, connection_invalidated=lost, dialect=dialect
            ) from error
        cursor.close()
        return answers

    def look(self, statement: Sql, values: Mapping[str, Any]) -> Sequence[Any]:
        """Return the rows that one statement reads, in a transaction of its own; on MariaDB in one round trip.

        Raises:
            StoreUnavailable: If the database did not answer.
        """

        def read(connection: Connection) -> Sequence[Any]:
            if self.dialect == "sqlite":
                return self.run(connection, statement, values).all()
            found, _ = self._send_together(connection, [(statement, values), (_END, {})])
            connection.info[_COMMITTED] = True
            return found.rows

        return self._with_retries(read)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_database(url: str, *, answer_seconds: int = 10) -> Database:
    """Return the database at a SQLAlchemy URL; nothing is connected yet.

    Args:
        url: Where it is.
        answer_seconds: A server that is silent for longer is taken for dead; reports over everything need more.

    Raises:
        InvalidSettings: If the URL is malformed or names a database that is not supported.
    """
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except ArgumentError as error:
        raise InvalidSettings(["database_url: not a URL such as mysql+pymysql://user@host/name"]) from error
    if backend not in ("mysql", "mariadb", "sqlite"):
        raise InvalidSettings([f"database_url: {backend} is not supported; use mysql+pymysql:// or sqlite:///"])
    options: dict[str, Any] = {}
    if backend == "sqlite":
        options["connect_args"] = {"timeout": 5, "check_same_thread": False}
    else:
        options["connect_args"] = {"connect_timeout": 3, "read_timeout": answer_seconds, "write_timeout": 10}
        options["connect_args"]["client_flag"] = _MARIADB_CLIENT
        # No ping before each use: a connection that died fails its first statement, and the unit of work is run again.
        options |= {"pool_recycle": 1800, "pool_size": 8, "max_overflow": 32, "pool_reset_on_return": None}
    try:
        engine = create_engine(parsed, **options)
    except (NoSuchModuleError, ImportError) as error:
        raise InvalidSettings([f"database_url: {error}"]) from error
    _prepare_sessions(engine, _SQLITE_SESSION if backend == "sqlite" else _MARIADB_SESSION, sqlite=backend == "sqlite")
    if backend != "sqlite":
        _check_server(engine)
        _roll_back_what_is_open(engine)
    _forget_when_forked(engine)
    return Database(engine)


def refuse_server(version: str, wsrep_on: str | None, cluster_size: str | None) -> None:
    """Refuse a server on which the guarantees would not hold.

    Raises:
        InvalidSettings: For MySQL, which has no DELETE … RETURNING; for MariaDB before 10.6, which has no SKIP LOCKED;
            and for Galera with several members, where two writers may both be told that they took a GPU until one of
            them commits.
    """
    numbers = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)", version)
    if "mariadb" not in version.lower() or numbers is None or (int(numbers[1]), int(numbers[2])) < (10, 6):
        raise InvalidSettings([f"database_url: the server is {version}; MariaDB 10.6 or later is needed"])
    if (wsrep_on or "OFF").upper() in ("ON", "1") and int(cluster_size or 0) > 1:
        raise InvalidSettings(
            [f"database_url: the server is one of {cluster_size} Galera members that all write; use a single writer"]
        )


def _prepare_sessions(engine: Engine, statements: Sequence[str], *, sqlite: bool) -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        if sqlite:
            connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()


def _roll_back_what_is_open(engine: Engine) -> None:
    """Spare a connection that comes back after a commit the rollback that every other one gets: a round trip each."""

    @event.listens_for(engine, "reset")
    def reset(connection: Any, record: Any, _state: Any) -> None:
        if record is None or not record.info.pop(_COMMITTED, False):
            connection.rollback()


def _forget_when_forked(engine: Engine) -> None:
    """A child of a fork must not use its parent's connections: Celery's prefork pool forks a worker that has some."""
    known = weakref.ref(engine)

    def forget() -> None:
        inherited = known()
        if inherited is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget)


def _check_server(engine: Engine) -> None:
    fit = False

    @event.listens_for(engine, "connect")
    def check(connection: Any, _record: Any) -> None:
        nonlocal fit
        if not fit:
            with connection.cursor() as cursor:
                cursor.execute(_SERVER_FACTS)
                refuse_server(*cursor.fetchone())
            fit = True


def _answer(cursor: Any) -> Answer:
    if cursor.description is None:
        return Answer(cursor.rowcount)
    row = _row_class(tuple(column[0] for column in cursor.description))
    return Answer(cursor.rowcount, [row(*values) for values in cursor.fetchall()])


@cache
def _row_class(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names)


def _may_pass(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        # An error of the driver's own, not of the library, has no code.
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_RETRIED
    arguments: tuple[object, ...] = getattr(error.orig, "args", ())
    return bool(arguments) and arguments[0] in RETRIED_CODES


def _reason(error: DBAPIError) -> str:
    return f"{type(error.orig).__name__}: {error.orig}"
