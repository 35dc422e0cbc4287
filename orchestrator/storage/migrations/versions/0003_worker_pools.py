"""Worker pools, their runners and their loads."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.sql.elements import conv

revision = "0003"
down_revision = "0002"

SEQ: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT: Final = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
DOCUMENT: Final = sa.Text().with_variant(mysql.LONGTEXT, "mysql", "mariadb")


def upgrade() -> None:
    """Create the tables; Alembic loads this module anew each time, so they are fresh."""
    options: dict[str, Any] = {
        "mysql_engine": "InnoDB",
        "mysql_charset": "utf8mb4",
        "mysql_collate": "utf8mb4_nopad_bin",
    }
    for name, *parts in TABLES:
        op.create_table(name, *parts, **options)
    for table in ("worker_pool_runners", "worker_pool_loads"):
        op.create_index(conv(f"ix_{table}_pool"), table, ["pool"])


TABLES: Final[tuple[tuple[Any, ...], ...]] = (
    (
        "worker_pools",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("task", sa.String(length=255), nullable=False),
        sa.Column("arguments", DOCUMENT, nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_memory_mib", sa.Integer()),
        sa.Column("wants", sa.String(length=1024)),
        sa.Column("least", sa.Integer(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("idle_s", sa.Float()),
        sa.Column("load_limit_s", sa.Float(), nullable=False),
        sa.Column("pinned", sa.SmallInteger(), nullable=False),
        sa.Column("tenant", sa.String(length=64)),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("leaving", sa.String(length=8)),
        sa.Column("asleep", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("reason", sa.String(length=512)),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("retry_at", INSTANT),
        sa.Column("raised_at", INSTANT, nullable=False),
        sa.Column("loaded_in_s", sa.Float()),
        sa.Column("changed_by", sa.String(length=128), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "state IN ('starting', 'ready', 'asleep', 'draining', 'stopped', 'failed')",
            name=conv("ck_worker_pools_state"),
        ),
        sa.CheckConstraint(
            "least >= 0 AND least <= most AND wanted >= 0 AND wanted <= most", name=conv("ck_worker_pools_size")
        ),
        sa.PrimaryKeyConstraint("name", name=conv("pk_worker_pools")),
    ),
    (
        "worker_pool_runners",
        sa.Column("lease_id", SEQ, autoincrement=False, nullable=False),
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("ready_at", INSTANT, nullable=False),
        sa.Column("used_at", INSTANT, nullable=False),
        sa.Column("jobs_done", sa.BigInteger(), nullable=False),
        sa.Column("run_s", sa.Float()),
        sa.Column("leaving", sa.String(length=8)),
        sa.Column("asleep", sa.SmallInteger(), nullable=False),
        sa.CheckConstraint("leaving IN ('drain', 'now')", name=conv("ck_worker_pool_runners_leaving")),
        sa.ForeignKeyConstraint(
            ["lease_id"],
            ["orchestrator_leases.id"],
            name=conv("fk_worker_pool_runners_lease_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("lease_id", name=conv("pk_worker_pool_runners")),
    ),
    (
        "worker_pool_loads",
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=conv("pk_worker_pool_loads")),
    ),
)
