"""The table of who holds leases without a job."""

from sqlalchemy import Column, Float, ForeignKey, SmallInteger, String, Table, UniqueConstraint

from orchestrator.storage.columns import INNODB, INSTANT, SEQ, metadata

#: Of leases that belong to no job: who holds them, and how they prove it.
lease_holders = Table(
    "orchestrator_lease_holders",
    metadata,
    Column(
        "lease_id",
        SEQ,
        ForeignKey("orchestrator_leases.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("token_hash", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("holder", String(128), nullable=False),
    Column("idempotency_key", String(128)),
    Column("ttl_s", Float, nullable=False),
    Column("request_digest", String(64)),
    Column("ready_at", INSTANT),  # its host has confirmed that nothing else is on the GPUs
    Column("refusal", String(255)),  # or why it cannot
    Column("busy_at", INSTANT),  # when one of its GPUs was last seen at work; NULL: never
    Column("idle_told", SmallInteger, nullable=False, default=0),  # 1: an event tells that none does anything
    UniqueConstraint("token_hash"),
    UniqueConstraint("tenant", "idempotency_key"),
    **INNODB,
)
