"""Who may do what, what was ordered, and who holds leases without a job."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.sql.elements import conv

revision = "0002"
down_revision = "0001"

SEQ: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT: Final = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Create the tables; Alembic loads this module anew each time, so they are fresh."""
    options: dict[str, Any] = {
        "mysql_engine": "InnoDB",
        "mysql_charset": "utf8mb4",
        "mysql_collate": "utf8mb4_nopad_bin",
    }
    for name, *parts in TABLES:
        op.create_table(name, *parts, **options)


TABLES: Final[tuple[tuple[Any, ...], ...]] = (
    (
        "orchestrator_policy",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("safe_mode", sa.SmallInteger(), nullable=False),
        sa.Column("pool_idle_s", sa.Float(), nullable=False),
        sa.Column("max_gpu_fraction", sa.Float(), nullable=False),
        sa.Column("changed_by", sa.String(length=128), nullable=False),
        sa.Column("changed_at", INSTANT, nullable=False),
        sa.CheckConstraint("id = 1", name=conv("ck_orchestrator_policy_one_row")),
        sa.PrimaryKeyConstraint("id", name=conv("pk_orchestrator_policy")),
    ),
    (
        "orchestrator_lease_holders",
        sa.Column("lease_id", SEQ, nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=128), nullable=False),
        sa.Column("idempotency_key", sa.String(length=128)),
        sa.Column("ttl_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["lease_id"],
            ["orchestrator_leases.id"],
            name=conv("fk_orchestrator_lease_holders_lease_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("lease_id", name=conv("pk_orchestrator_lease_holders")),
        sa.UniqueConstraint("token_hash", name=conv("uq_orchestrator_lease_holders_token_hash")),
        sa.UniqueConstraint(
            "tenant", "idempotency_key", name=conv("uq_orchestrator_lease_holders_tenant_idempotency_key")
        ),
    ),
    (
        "orchestrator_audit",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("tenant", sa.String(length=64)),
        sa.Column("action", sa.String(length=128), nullable=False),
        sa.Column("target", sa.String(length=512), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=conv("pk_orchestrator_audit")),
    ),
    (
        "orchestrator_tokens",
        sa.Column("id", sa.String(length=12), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("tenant", sa.String(length=64)),
        sa.Column("requests_per_minute", sa.Integer()),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("revoked_at", INSTANT),
        sa.Column("last_used_at", INSTANT),
        sa.CheckConstraint(
            "role IN ('viewer', 'submitter', 'operator', 'admin')", name=conv("ck_orchestrator_tokens_role")
        ),
        sa.CheckConstraint(
            "role <> 'submitter' OR tenant IS NOT NULL", name=conv("ck_orchestrator_tokens_submitter_has_tenant")
        ),
        sa.CheckConstraint(
            "role NOT IN ('operator', 'admin') OR tenant IS NULL", name=conv("ck_orchestrator_tokens_operator_has_none")
        ),
        sa.PrimaryKeyConstraint("id", name=conv("pk_orchestrator_tokens")),
        sa.UniqueConstraint("name", name=conv("uq_orchestrator_tokens_name")),
    ),
)
