"""When a lease without a job was confirmed by its host, or why it was not, and whether its GPUs do anything."""

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0004"
down_revision = "0003"

INSTANT: Final = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
TABLE: Final = "orchestrator_lease_holders"


def upgrade() -> None:
    """Add the columns; who holds a lease already uses its GPUs, and no host is to look whether they are free."""
    op.add_column(TABLE, sa.Column("ready_at", INSTANT))
    op.add_column(TABLE, sa.Column("refusal", sa.String(length=255)))
    op.add_column(TABLE, sa.Column("busy_at", INSTANT))
    op.add_column(TABLE, sa.Column("idle_told", sa.SmallInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE orchestrator_lease_holders SET ready_at = (SELECT l.granted_at FROM orchestrator_leases l"
        " WHERE l.id = orchestrator_lease_holders.lease_id)"
    )
