"""The tables of worker pools."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Float, ForeignKey, Integer, SmallInteger, String, Table

from orchestrator.domain.pool import Leave, PoolState
from orchestrator.storage.columns import DOCUMENT, INNODB, INSTANT, SEQ, metadata, one_of

pools = Table(
    "worker_pools",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("model", String(128), nullable=False),
    Column("task", String(255), nullable=False),
    Column("arguments", DOCUMENT, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_memory_mib", Integer),
    Column("wants", String(1024)),
    Column("least", Integer, nullable=False),
    Column("most", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),  # runners that are to be there now
    Column("idle_s", Float),  # NULL: as the policy says
    Column("load_limit_s", Float, nullable=False),
    Column("pinned", SmallInteger, nullable=False),
    Column("tenant", String(64)),  # NULL: everybody's jobs run in it
    Column("priority", SmallInteger, nullable=False),
    Column("generation", Integer, nullable=False),  # counts swaps
    Column("leaving", String(8)),  # its runners are to leave: when their jobs are done, or now
    Column("asleep", SmallInteger, nullable=False),
    Column("state", String(10), nullable=False),
    Column("reason", String(512)),
    Column("failures", Integer, nullable=False),
    Column("retry_at", INSTANT),
    Column("raised_at", INSTANT, nullable=False),
    Column("loaded_in_s", Float),
    Column("changed_by", String(128), nullable=False),
    Column("created_at", INSTANT, nullable=False),
    Column("version", Integer, nullable=False),
    one_of("state", PoolState),
    CheckConstraint("least >= 0 AND least <= most AND wanted >= 0 AND wanted <= most", name="size"),
    **INNODB,
)

#: Runners that have loaded their model; a row goes when the leader has seen that the lease is over.
pool_runners = Table(
    "worker_pool_runners",
    metadata,
    Column(
        "lease_id",
        SEQ,
        ForeignKey("orchestrator_leases.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("pool", String(64), nullable=False, index=True),
    Column("generation", Integer, nullable=False),
    Column("model", String(128), nullable=False),
    Column("ready_at", INSTANT, nullable=False),
    Column("used_at", INSTANT, nullable=False),
    Column("jobs_done", BigInteger, nullable=False),
    Column("run_s", Float),
    Column("leaving", String(8)),
    Column("asleep", SmallInteger, nullable=False),
    CheckConstraint(f"leaving IN ('{Leave.DRAIN.value}', '{Leave.NOW.value}')", name="leaving"),
    **INNODB,
)

#: Jobs that make runners; a row goes when the runner is there, or the leader has taken note of the failure.
pool_loads = Table(
    "worker_pool_loads",
    metadata,
    Column("job_id", String(36), primary_key=True),
    Column("pool", String(64), nullable=False, index=True),
    Column("generation", Integer, nullable=False),
    Column("created_at", INSTANT, nullable=False),
    **INNODB,
)
