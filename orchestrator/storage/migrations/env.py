"""Alembic's environment: runs over the connection that ``schema.upgrade`` hands it."""

from alembic import context

from orchestrator.storage.schema import VERSION_TABLE
from orchestrator.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
