"""What is counted for ever, and when a host last had trouble with the database."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.sql.elements import conv

revision = "0005"
down_revision = "0004"

INSTANT: Final = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Create the table of totals, which begins with the expiries that the history still tells of."""
    options: dict[str, Any] = {
        "mysql_engine": "InnoDB",
        "mysql_charset": "utf8mb4",
        "mysql_collate": "utf8mb4_nopad_bin",
    }
    op.create_table(
        "orchestrator_totals",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", name=conv("pk_orchestrator_totals")),
        **options,
    )
    op.execute(
        "INSERT INTO orchestrator_totals (name, label, total)"
        " SELECT 'lease_expired', '', COUNT(*) FROM orchestrator_events WHERE kind = 'lease_expired'"
    )
    op.add_column("orchestrator_nodes", sa.Column("degraded_at", INSTANT))
