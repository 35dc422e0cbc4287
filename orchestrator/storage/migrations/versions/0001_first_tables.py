"""The first tables: what a job's way from submit to result needs."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql
from sqlalchemy.sql.elements import conv

revision = "0001"
down_revision = None

SEQ: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
INSTANT: Final = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
DOCUMENT: Final = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    """Create the tables and their indexes; Alembic loads this module anew each time, so they are fresh."""
    for name, *parts in TABLES:
        options = {
            "mysql_engine": "InnoDB",
            "mysql_charset": "utf8mb4",
            "mysql_collate": "utf8mb4_nopad_bin",
            "sqlite_autoincrement": name == LEASES,
        }
        op.create_table(name, *parts, **options)
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)


#: A lease's id is a fencing token: SQLite must never issue one twice either.
LEASES: Final = "orchestrator_leases"

TABLES: Final[tuple[tuple[Any, ...], ...]] = (
    (
        "orchestrator_attempts",
        sa.Column("job_seq", SEQ, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("lease_id", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("pid", sa.Integer()),
        sa.Column("claimed_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT),
        sa.Column("ended_at", INSTANT),
        sa.Column("outcome", sa.String(length=16)),
        sa.Column("failure_class", sa.String(length=16)),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("error", DOCUMENT),
        sa.Column("peak_memory_mib", sa.Integer()),
        sa.Column("gpu_seconds", sa.Float(), nullable=False),
        sa.Column("gpu_busy_seconds", sa.Float()),
        sa.PrimaryKeyConstraint("job_seq", "number", name=conv("pk_orchestrator_attempts")),
    ),
    (
        "orchestrator_cancelled_canvases",
        sa.Column("id", sa.String(length=155), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("reason", sa.String(length=512), nullable=False),
        sa.PrimaryKeyConstraint("id", name=conv("pk_orchestrator_cancelled_canvases")),
    ),
    (
        "orchestrator_dead_letters",
        sa.Column("job_seq", SEQ, autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("failure_class", sa.String(length=16), nullable=False),
        sa.Column("reason", DOCUMENT, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("copied", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_seq", name=conv("pk_orchestrator_dead_letters")),
    ),
    (
        "orchestrator_needs",
        sa.Column("job_seq", SEQ, autoincrement=False, nullable=False),
        sa.Column("needs_id", sa.String(length=155), nullable=False),
        sa.PrimaryKeyConstraint("job_seq", "needs_id", name=conv("pk_orchestrator_needs")),
    ),
    (
        "orchestrator_events",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("job_seq", sa.BigInteger()),
        sa.Column("node", sa.String(length=64)),
        sa.Column("lease_id", sa.BigInteger()),
        sa.Column("epoch", sa.BigInteger()),
        sa.Column("data", DOCUMENT),
        sa.PrimaryKeyConstraint("seq", name=conv("pk_orchestrator_events")),
    ),
    (
        "orchestrator_firings",
        sa.Column("name", sa.String(length=191), nullable=False),
        sa.Column("fired_at", INSTANT, nullable=False),
        sa.Column("task_id", sa.String(length=155)),
        sa.Column("is_sent", sa.SmallInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=conv("pk_orchestrator_firings")),
    ),
    (
        "orchestrator_gpus",
        sa.Column("uuid", sa.String(length=64), nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("gpu_index", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("driver_version", sa.String(length=64), nullable=False),
        sa.Column("mig_profile", sa.String(length=32)),
        sa.Column("parent_uuid", sa.String(length=64)),
        sa.Column("health", sa.String(length=12), nullable=False),
        sa.Column("health_reason", sa.String(length=255)),
        sa.Column("strikes", sa.Integer(), nullable=False),
        sa.Column("held", sa.SmallInteger(), nullable=False),
        sa.Column("releases", sa.Integer(), nullable=False),
        sa.Column("resets", sa.Integer(), nullable=False),
        sa.Column("used_mib", sa.Integer(), nullable=False),
        sa.Column("utilization", sa.Integer()),
        sa.Column("temperature", sa.Integer()),
        sa.Column("power", sa.Integer()),
        sa.Column("reserved_mib", sa.Integer(), nullable=False),
        sa.Column("exclusive_lease_id", sa.BigInteger()),
        sa.Column("last_lease_id", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "health IN ('healthy', 'suspect', 'quarantined', 'lost')", name=conv("ck_orchestrator_gpus_health")
        ),
        sa.CheckConstraint(
            "exclusive_lease_id IS NULL OR reserved_mib = 0", name=conv("ck_orchestrator_gpus_exclusive_or_shared")
        ),
        sa.CheckConstraint(
            "reserved_mib >= 0 AND reserved_mib <= memory_mib", name=conv("ck_orchestrator_gpus_reserved_fits")
        ),
        sa.PrimaryKeyConstraint("uuid", name=conv("pk_orchestrator_gpus")),
    ),
    (
        "orchestrator_jobs",
        sa.Column("seq", SEQ, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("task", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("submitted_by", sa.String(length=128), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("reason", sa.String(length=512)),
        sa.Column("payload", DOCUMENT, nullable=False),
        sa.Column("headers", DOCUMENT, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_memory_mib", sa.Integer()),
        sa.Column("wants", sa.String(length=1024)),
        sa.Column("time_limit_s", sa.Float()),
        sa.Column("soft_time_limit_s", sa.Float()),
        sa.Column("grace_s", sa.Float(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("retry_on", sa.String(length=255)),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lost_count", sa.Integer(), nullable=False),
        sa.Column("forgiven", sa.Integer(), nullable=False),
        sa.Column("run_at", INSTANT),
        sa.Column("deadline", INSTANT),
        sa.Column("idempotency_key", sa.String(length=128)),
        sa.Column("root_id", sa.String(length=155)),
        sa.Column("parent_id", sa.String(length=155)),
        sa.Column("group_id", sa.String(length=155)),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("traceparent", sa.String(length=55)),
        sa.Column("node", sa.String(length=64)),
        sa.Column("lease_id", sa.BigInteger()),
        sa.Column("result", DOCUMENT),
        sa.Column("error", DOCUMENT),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("failure_class", sa.String(length=16)),
        sa.Column("progress", DOCUMENT),
        sa.Column("held_by", sa.String(length=128)),
        sa.Column("cancel_requested_at", INSTANT),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("queued_at", INSTANT),
        sa.Column("started_at", INSTANT),
        sa.Column("finished_at", INSTANT),
        sa.CheckConstraint(
            "(state = 'running') = (lease_id IS NOT NULL)", name=conv("ck_orchestrator_jobs_running_has_lease")
        ),
        sa.CheckConstraint(
            "(state IN ('succeeded', 'failed', 'cancelled', 'dead_letter')) = (finished_at IS NOT NULL)",
            name=conv("ck_orchestrator_jobs_ended_has_instant"),
        ),
        sa.CheckConstraint("kind IN ('command', 'task')", name=conv("ck_orchestrator_jobs_kind")),
        sa.CheckConstraint(
            "state IN ('blocked', 'scheduled', 'pending', 'queued', 'running',"
            " 'succeeded', 'failed', 'cancelled', 'dead_letter')",
            name=conv("ck_orchestrator_jobs_state"),
        ),
        sa.CheckConstraint(
            "gpus >= 0 AND (gpu_memory_mib IS NULL OR (gpus = 1 AND gpu_memory_mib > 0))",
            name=conv("ck_orchestrator_jobs_resources"),
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name=conv("ck_orchestrator_jobs_priority")),
        sa.PrimaryKeyConstraint("seq", name=conv("pk_orchestrator_jobs")),
        sa.UniqueConstraint("id", name=conv("uq_orchestrator_jobs_id")),
        sa.UniqueConstraint("tenant", "idempotency_key", name=conv("uq_orchestrator_jobs_tenant_idempotency_key")),
    ),
    (
        "orchestrator_leadership",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("since", INSTANT, nullable=False),
        sa.Column("guarded", sa.SmallInteger(), nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=conv("pk_orchestrator_leadership")),
    ),
    (
        "orchestrator_leases",
        sa.Column("id", SEQ, autoincrement=True, nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("pid", sa.Integer()),
        sa.Column("mode", sa.String(length=10), nullable=False),
        sa.Column("memory_mib", sa.Integer()),
        sa.Column("cpus", sa.Integer(), nullable=False),
        sa.Column("host_memory_mib", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("renewals", sa.Integer(), nullable=False),
        sa.Column("granted_at", INSTANT, nullable=False),
        sa.Column("heartbeat_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.Column("ended_at", INSTANT),
        sa.CheckConstraint("mode IN ('exclusive', 'shared')", name=conv("ck_orchestrator_leases_mode")),
        sa.CheckConstraint("state IN ('active', 'released', 'expired')", name=conv("ck_orchestrator_leases_state")),
        sa.PrimaryKeyConstraint("id", name=conv("pk_orchestrator_leases")),
    ),
    (
        "orchestrator_logs",
        sa.Column("job_seq", SEQ, autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("job_seq", "attempt", "number", name=conv("pk_orchestrator_logs")),
    ),
    (
        "orchestrator_nodes",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("drain", sa.SmallInteger(), nullable=False),
        sa.Column("queues", sa.Text(), nullable=False),
        sa.Column("tasks", sa.Text(), nullable=False),
        sa.Column("cpu_slots", sa.Integer(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("cpus", sa.Integer(), nullable=False),
        sa.Column("memory_mib", sa.Integer(), nullable=False),
        sa.Column("look_ahead", sa.Integer(), nullable=False),
        sa.Column("registered_at", INSTANT, nullable=False),
        sa.Column("heartbeat_at", INSTANT, nullable=False),
        sa.CheckConstraint("state IN ('up', 'draining', 'drained', 'lost')", name=conv("ck_orchestrator_nodes_state")),
        sa.PrimaryKeyConstraint("name", name=conv("pk_orchestrator_nodes")),
    ),
    (
        "orchestrator_queues",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("paused", sa.SmallInteger(), nullable=False),
        sa.Column("window", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=conv("pk_orchestrator_queues")),
    ),
    (
        "orchestrator_ready",
        sa.Column("job_seq", SEQ, autoincrement=False, nullable=False),
        sa.Column("queue", sa.String(length=64), nullable=False),
        sa.Column("rank", sa.SmallInteger(), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_memory_mib", sa.Integer()),
        sa.Column("wants", sa.String(length=1024)),
        sa.Column("deadline", INSTANT),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("node", sa.String(length=64)),
        sa.Column("publish_at", INSTANT),
        sa.Column("entry_id", sa.String(length=32)),
        sa.PrimaryKeyConstraint("job_seq", name=conv("pk_orchestrator_ready")),
    ),
    (
        "orchestrator_scheduled",
        sa.Column("run_at", INSTANT, nullable=False),
        sa.Column("job_seq", SEQ, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("run_at", "job_seq", name=conv("pk_orchestrator_scheduled")),
        sa.UniqueConstraint("job_seq", name=conv("uq_orchestrator_scheduled_job_seq")),
    ),
    (
        "orchestrator_sweeps",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("passes", sa.BigInteger(), nullable=False),
        sa.Column("did", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("last_at", INSTANT, nullable=False),
        sa.Column("last_did", sa.BigInteger(), nullable=False),
        sa.Column("last_seconds", sa.Float(), nullable=False),
        sa.Column("last_error", sa.String(length=512)),
        sa.Column("epoch", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name", name=conv("pk_orchestrator_sweeps")),
    ),
    (
        "orchestrator_lease_gpus",
        sa.Column("lease_id", SEQ, nullable=False),
        sa.Column("gpu_uuid", sa.String(length=64), nullable=False),
        sa.Column("live_exclusive", sa.SmallInteger()),
        sa.Column("taken_turn", sa.BigInteger(), nullable=False),
        sa.Column("freed_turn", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["lease_id"],
            ["orchestrator_leases.id"],
            name=conv("fk_orchestrator_lease_gpus_lease_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("lease_id", "gpu_uuid", name=conv("pk_orchestrator_lease_gpus")),
        sa.UniqueConstraint(
            "gpu_uuid", "live_exclusive", name=conv("uq_orchestrator_lease_gpus_gpu_uuid_live_exclusive")
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

INDEXES: Final = (
    ("ix_orchestrator_attempts_lease_id", "orchestrator_attempts", ["lease_id"]),
    ("ix_orchestrator_dead_letters_copied", "orchestrator_dead_letters", ["copied"]),
    ("ix_orchestrator_events_job_seq", "orchestrator_events", ["job_seq"]),
    ("ix_orchestrator_gpus_node", "orchestrator_gpus", ["node"]),
    ("ix_orchestrator_jobs_finished_at", "orchestrator_jobs", ["finished_at"]),
    ("ix_orchestrator_jobs_group_id", "orchestrator_jobs", ["group_id"]),
    ("ix_orchestrator_jobs_root_id", "orchestrator_jobs", ["root_id"]),
    ("ix_orchestrator_needs_needs_id", "orchestrator_needs", ["needs_id"]),
    ("ix_orchestrator_leases_state_expires_at", "orchestrator_leases", ["state", "expires_at"]),
    ("ix_orchestrator_ready_publish_at", "orchestrator_ready", ["publish_at"]),
    (
        "ix_orchestrator_ready_queue_publish_at_rank_job_seq",
        "orchestrator_ready",
        ["queue", "publish_at", "rank", "job_seq"],
    ),
)
