"""The tables. Instants are UTC with microseconds; documents are JSON text.

``orchestrator_ready`` holds exactly the jobs that are ``pending`` or ``queued``; ``orchestrator_scheduled`` exactly
those that are ``scheduled``. So claims, admission and release never search ``orchestrator_jobs``.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from orchestrator.domain.access import Role
from orchestrator.domain.cluster import GpuHealth, NodeState
from orchestrator.domain.job import JobKind, JobState, LeaseMode
from orchestrator.domain.wants import LONGEST_WANTS
from orchestrator.storage import holder_tables, leader_tables, pool_tables, total_tables  # noqa: F401 - these complete it
from orchestrator.storage.columns import DOCUMENT as _Document
from orchestrator.storage.columns import INNODB as _INNODB
from orchestrator.storage.columns import INSTANT as _Instant
from orchestrator.storage.columns import SEQ as _Seq
from orchestrator.storage.columns import metadata
from orchestrator.storage.columns import one_of as _one_of

__all__ = ["metadata"]  # and every table

jobs = Table(
    "orchestrator_jobs",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("name", String(128), nullable=False),
    Column("task", String(255), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("queue", String(64), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("submitted_by", String(128), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("state", String(12), nullable=False),
    Column("reason", String(512)),
    Column("payload", _Document, nullable=False),
    Column("headers", _Document, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_memory_mib", Integer),
    Column("wants", String(LONGEST_WANTS)),  # conditions on GPUs and host, as ``domain.wants`` writes them
    Column("time_limit_s", Float),
    Column("soft_time_limit_s", Float),
    Column("grace_s", Float, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("retry_on", String(255)),
    Column("attempt", Integer, nullable=False, default=0),
    Column("lost_count", Integer, nullable=False, default=0),
    Column("forgiven", Integer, nullable=False, default=0),  # attempts before it was revived: they count no more
    Column("run_at", _Instant),
    Column("deadline", _Instant),
    Column("idempotency_key", String(128)),
    Column("root_id", String(155), index=True),
    Column("parent_id", String(155)),
    Column("group_id", String(155), index=True),
    Column("request_hash", String(64), nullable=False),
    Column("traceparent", String(55)),
    Column("node", String(64)),
    Column("lease_id", BigInteger),
    Column("result", _Document),
    Column("error", _Document),
    Column("exit_code", Integer),
    Column("failure_class", String(16)),
    Column("progress", _Document),
    Column("checkpoint", String(1024)),
    Column("cancel_requested_at", _Instant),
    Column("held_by", String(128)),  # who keeps it from being admitted
    Column("created_at", _Instant, nullable=False),
    Column("queued_at", _Instant),
    Column("started_at", _Instant),
    Column("finished_at", _Instant),
    UniqueConstraint("tenant", "idempotency_key"),
    Index(None, "finished_at"),  # what is old enough to prune
    _one_of("state", JobState),
    _one_of("kind", JobKind),
    CheckConstraint("(state = 'running') = (lease_id IS NOT NULL)", name="running_has_lease"),
    CheckConstraint(
        "(state IN ('succeeded', 'failed', 'cancelled', 'dead_letter')) = (finished_at IS NOT NULL)",
        name="ended_has_instant",
    ),
    CheckConstraint("gpus >= 0 AND (gpu_memory_mib IS NULL OR (gpus = 1 AND gpu_memory_mib > 0))", name="resources"),
    CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
    **_INNODB,
)

ready = Table(
    "orchestrator_ready",
    metadata,
    Column("job_seq", _Seq, primary_key=True, autoincrement=False),
    Column("queue", String(64), nullable=False),
    Column("rank", SmallInteger, nullable=False),  # 9 - priority, and 100 more while held: the smallest starts first
    Column("tenant", String(64), nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_memory_mib", Integer),
    Column("wants", String(LONGEST_WANTS)),
    Column("deadline", _Instant),
    Column("created_at", _Instant, nullable=False),
    Column("node", String(64)),  # admitted for this host; NULL: any
    Column("publish_at", _Instant),  # NULL: pending; else queued, and its entry is looked for at this instant
    Column("entry_id", String(32)),  # where its entry was seen last
    Index(None, "queue", "publish_at", "rank", "job_seq"),
    Index(None, "publish_at"),
    **_INNODB,
)

scheduled = Table(
    "orchestrator_scheduled",
    metadata,
    Column("run_at", _Instant, nullable=False),
    Column("job_seq", _Seq, nullable=False, autoincrement=False),
    PrimaryKeyConstraint("run_at", "job_seq"),
    UniqueConstraint("job_seq"),
    **_INNODB,
)

#: What blocked jobs wait for; a job that is not blocked has no row here.
needs = Table(
    "orchestrator_needs",
    metadata,
    Column("job_seq", _Seq, nullable=False, autoincrement=False),
    Column("needs_id", String(155), nullable=False),  # of a job or of a plain task
    PrimaryKeyConstraint("job_seq", "needs_id"),
    Index(None, "needs_id"),
    **_INNODB,
)

#: Canvases and groups that somebody cancelled: what they would still submit does not start.
cancelled_canvases = Table(
    "orchestrator_cancelled_canvases",
    metadata,
    Column("id", String(155), primary_key=True),  # a root or a group
    Column("at", _Instant, nullable=False),
    Column("reason", String(512), nullable=False),
    **_INNODB,
)

attempts = Table(
    "orchestrator_attempts",
    metadata,
    Column("job_seq", _Seq, nullable=False, autoincrement=False),
    Column("number", Integer, nullable=False),
    Column("lease_id", BigInteger, nullable=False),
    Column("node", String(64), nullable=False),
    Column("pid", Integer),
    Column("claimed_at", _Instant, nullable=False),
    Column("started_at", _Instant),
    Column("ended_at", _Instant),
    Column("outcome", String(16)),
    Column("failure_class", String(16)),
    Column("exit_code", Integer),
    Column("error", _Document),
    Column("peak_memory_mib", Integer),
    Column("peak_gpu_memory_mib", Integer),
    Column("isolation", String(64)),
    Column("gpu_seconds", Float, nullable=False, default=0.0),
    Column("gpu_busy_seconds", Float),  # by sampled utilization; NULL: the driver does not tell
    PrimaryKeyConstraint("job_seq", "number"),
    Index(None, "lease_id", "ended_at"),  # what is open under a lease: a worker pool's has thousands that have ended
    **_INNODB,
)

leases = Table(
    "orchestrator_leases",
    metadata,
    Column("id", _Seq, primary_key=True, autoincrement=True),
    Column("node", String(64), nullable=False),
    Column("pid", Integer),
    Column("mode", String(10), nullable=False),
    Column("memory_mib", Integer),
    Column("cpus", Integer, nullable=False, default=0),  # of the host, counted against what it offers
    Column("host_memory_mib", Integer, nullable=False, default=0),
    Column("state", String(8), nullable=False),
    Column("renewals", Integer, nullable=False, default=0),
    Column("granted_at", _Instant, nullable=False),
    Column("heartbeat_at", _Instant, nullable=False),
    Column("expires_at", _Instant, nullable=False),
    Column("ended_at", _Instant),
    CheckConstraint("state IN ('active', 'released', 'expired')", name="state"),
    _one_of("mode", LeaseMode),
    Index(None, "state", "expires_at"),
    **_INNODB,
    sqlite_autoincrement=True,  # a token must never be issued twice
)

lease_gpus = Table(
    "orchestrator_lease_gpus",
    metadata,
    Column("lease_id", _Seq, ForeignKey("orchestrator_leases.id", ondelete="CASCADE"), nullable=False),
    Column("gpu_uuid", String(64), nullable=False),
    Column("live_exclusive", SmallInteger),  # 1 while an exclusive lease is active, else NULL
    Column("taken_turn", BigInteger, nullable=False),  # the GPU's turn when it was taken, and when it was freed:
    Column("freed_turn", BigInteger),  # who held it when, in the order of its row lock, whatever any clock says
    PrimaryKeyConstraint("lease_id", "gpu_uuid"),
    UniqueConstraint("gpu_uuid", "live_exclusive"),
    **_INNODB,
)

nodes = Table(
    "orchestrator_nodes",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("boot_id", String(64), nullable=False),
    Column("worker", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("state", String(10), nullable=False),
    Column("drain", SmallInteger, nullable=False, default=0),  # an operator's wish: it outlives the worker
    Column("queues", Text, nullable=False),
    Column("tasks", Text, nullable=False),
    Column("cpu_slots", Integer, nullable=False),
    Column("labels", Text, nullable=False),
    Column("cpus", Integer, nullable=False),  # that jobs may ask for
    Column("memory_mib", Integer, nullable=False),  # likewise
    Column("look_ahead", Integer, nullable=False, default=0),
    Column("registered_at", _Instant, nullable=False),
    Column("heartbeat_at", _Instant, nullable=False),
    Column("degraded_at", _Instant),  # when the database did not take what its worker wrote, the last time
    _one_of("state", NodeState),
    **_INNODB,
)

gpus = Table(
    "orchestrator_gpus",
    metadata,
    Column("uuid", String(64), primary_key=True),
    Column("node", String(64), nullable=False, index=True),
    Column("gpu_index", Integer, nullable=False),
    Column("model", String(128), nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("driver_version", String(64), nullable=False),
    Column("mig_profile", String(32)),  # of an instance
    Column("parent_uuid", String(64)),  # the card of an instance
    Column("health", String(12), nullable=False),
    Column("health_reason", String(255)),
    Column("strikes", Integer, nullable=False, default=0),
    Column("held", SmallInteger, nullable=False, default=0),  # 1: an operator keeps it out
    Column("releases", Integer, nullable=False, default=0),  # how often one let it back in
    Column("resets", Integer, nullable=False, default=0),  # how often one forgave its strikes
    Column("used_mib", Integer, nullable=False, default=0),
    Column("utilization", Integer),
    Column("temperature", Integer),
    Column("power", Integer),
    Column("warning", String(255)),  # what is amiss although it may be leased
    Column("numa", Integer),  # the NUMA node that it is near to
    Column("links", _Document),  # uuids of the GPUs that it is linked to; NULL: it does not tell
    Column("foreign_mib", Integer, nullable=False, default=0),  # in use without a lease
    Column("foreign_by", String(512)),  # by whom
    Column("clean", SmallInteger, nullable=False, default=1),  # 0: others use it, it is not granted as a whole
    Column("headroom_mib", Integer, nullable=False, default=0),  # that is not lent out in shares
    Column("reserved_mib", Integer, nullable=False, default=0),
    Column("exclusive_lease_id", BigInteger),
    Column("last_lease_id", BigInteger, nullable=False, default=0),  # the largest token that ever held it
    Column("turn", BigInteger, nullable=False, default=0),  # counts each time it is taken or freed
    _one_of("health", GpuHealth),
    CheckConstraint("reserved_mib >= 0 AND reserved_mib <= memory_mib", name="reserved_fits"),
    CheckConstraint("exclusive_lease_id IS NULL OR reserved_mib = 0", name="exclusive_or_shared"),
    **_INNODB,
)

queues = Table(
    "orchestrator_queues",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("paused", SmallInteger, nullable=False, default=0),
    Column("paused_by", String(128)),
    Column("most_running", Integer),  # jobs at once; NULL: as many as fit
    Column("time_limit_s", Float),  # of jobs that bring none
    Column("version", Integer, nullable=False, default=0),
    Column("window", Integer, nullable=False, default=16),  # jobs that a submit may admit by itself
    **_INNODB,
)

#: One row, once somebody has changed something; without it the defaults of ``domain.policy`` hold.
policy = Table(
    "orchestrator_policy",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("safe_mode", SmallInteger, nullable=False),
    Column("pool_idle_s", Float, nullable=False),
    Column("max_gpu_fraction", Float, nullable=False),  # of each GPU's memory, that is lent out in shares
    Column("changed_by", String(128), nullable=False),
    Column("changed_at", _Instant, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    **_INNODB,
)

events = Table(
    "orchestrator_events",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("at", _Instant, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("job_seq", BigInteger, index=True),
    Column("node", String(64)),
    Column("lease_id", BigInteger),
    Column("epoch", BigInteger),  # of the leader that wrote it; NULL: anybody may
    Column("data", _Document),
    **_INNODB,
)

logs = Table(
    "orchestrator_logs",
    metadata,
    Column("job_seq", _Seq, nullable=False, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", _Instant, nullable=False),
    Column("data", _Document, nullable=False),
    PrimaryKeyConstraint("job_seq", "attempt", "number"),
    **_INNODB,
)

#: Jobs that could not be processed and wait for a person; a row goes when its job is revived or it is purged.
dead_letters = Table(
    "orchestrator_dead_letters",
    metadata,
    Column("job_seq", _Seq, primary_key=True, autoincrement=False),
    Column("job_id", String(36), nullable=False),
    Column("queue", String(64), nullable=False),
    Column("failure_class", String(16), nullable=False),
    Column("reason", _Document, nullable=False),
    Column("at", _Instant, nullable=False),
    Column("copied", SmallInteger, nullable=False),  # 1: the dead-letter stream has had it
    Index(None, "copied"),
    **_INNODB,
)

tokens = Table(
    "orchestrator_tokens",
    metadata,
    Column("id", String(12), primary_key=True),  # public: the part of the secret by which it is looked up
    Column("name", String(64), nullable=False, unique=True),
    Column("hash", String(64), nullable=False),  # SHA-256 of the whole secret
    Column("role", String(10), nullable=False),
    Column("tenant", String(64)),  # NULL: every tenant
    Column("requests_per_minute", Integer),  # NULL: as the settings say
    Column("created_by", String(128), nullable=False),
    Column("created_at", _Instant, nullable=False),
    Column("expires_at", _Instant),
    Column("revoked_at", _Instant),
    Column("last_used_at", _Instant),  # to the minute
    _one_of("role", Role),
    CheckConstraint("role <> 'submitter' OR tenant IS NOT NULL", name="submitter_has_tenant"),
    CheckConstraint("role NOT IN ('operator', 'admin') OR tenant IS NULL", name="operator_has_none"),
    **_INNODB,
)

audit = Table(
    "orchestrator_audit",
    metadata,
    Column("seq", _Seq, primary_key=True, autoincrement=True),
    Column("at", _Instant, nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("actor", String(128), nullable=False),
    Column("role", String(10), nullable=False),
    Column("tenant", String(64)),
    Column("action", String(128), nullable=False),
    Column("target", String(512), nullable=False),
    Column("outcome", String(16), nullable=False),  # begun, or the status that was answered: a row of its own
    **_INNODB,
)
