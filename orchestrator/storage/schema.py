"""The schema's versions: upgrade, current, check."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from orchestrator.errors import SchemaMismatch, StoreUnavailable
from orchestrator.storage.engine import open_database
from orchestrator.storage.tables import metadata

MIGRATIONS: Final = Path(__file__).parent / "migrations"
VERSION_TABLE: Final = "orchestrator_schema"


def upgrade(url: str) -> str:
    """Bring the database to this release's schema, from nothing if need be, and return its version."""
    database = open_database(url)
    try:
        if database.dialect == "sqlite" and database.engine.url.database:
            Path(database.engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        with database.engine.connect() as connection, _alone(connection, database.dialect):
            command.upgrade(_config(connection), "head")
            connection.commit()
    except DBAPIError as error:
        raise StoreUnavailable(f"cannot upgrade the schema: {error.orig}") from error
    except OSError as error:
        raise StoreUnavailable(f"cannot upgrade the schema: {error}") from error
    finally:
        database.close()
    return head()


def current(url: str) -> str | None:
    """Return the database's version; None when it has no schema."""
    database = open_database(url)
    try:
        with database.engine.connect() as connection:
            return _context(connection).get_current_revision()
    except DBAPIError as error:
        raise StoreUnavailable(f"cannot read the schema's version: {error.orig}") from error
    finally:
        database.close()


def head() -> str:
    """Return the version that this release needs."""
    script = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    assert script is not None
    return script


def check(url: str) -> str:
    """Return the version if the database's schema is this release's.

    Raises:
        SchemaMismatch: Naming the versions, or the first differences from the tables that this release knows.
    """
    found = current(url)
    if found != head():
        raise SchemaMismatch(
            f"the schema is at {found or 'nothing'}, this release needs {head()}; run: orch db upgrade"
        )
    database = open_database(url)
    try:
        with database.engine.connect() as connection:
            differences = compare_metadata(_context(connection), metadata)
    finally:
        database.close()
    if differences:
        raise SchemaMismatch(f"the schema differs from this release's tables: {differences[:3]}")
    return found


@contextmanager
def _alone(connection: Connection, dialect: str) -> Iterator[None]:
    """Keep other upgrades of the same database out: two processes that start together would both create the tables."""
    if dialect == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # its schema changes are part of the transaction
        yield
        return
    name = f"orchestrator-schema-{connection.engine.url.database}"[:64]
    if not connection.execute(text("SELECT GET_LOCK(:name, :seconds)"), {"name": name, "seconds": 60}).scalar():
        raise StoreUnavailable("another process has been upgrading this database for a minute")
    # The driver's transaction must not be older than the lock, or it would not see what the other upgrade did.
    connection.commit()
    try:
        yield
    finally:
        connection.execute(text("DO RELEASE_LOCK(:name)"), {"name": name})


def _context(connection: Any) -> MigrationContext:
    options = {"version_table": VERSION_TABLE, "include_object": _is_ours, "compare_type": False}
    return MigrationContext.configure(connection, opts=options)


def _is_ours(_object: Any, name: str | None, kind: str, _reflected: bool, _other: Any) -> bool:
    return kind != "table" or (name or "").startswith("orchestrator_")


def _config(connection: Any) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config
