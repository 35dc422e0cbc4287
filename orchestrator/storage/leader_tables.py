"""The tables of the leader: who it is, what it fired and what its sweeps did."""

from sqlalchemy import BigInteger, Column, Float, SmallInteger, String, Table

from orchestrator.storage.columns import INNODB, metadata
from orchestrator.storage.columns import INSTANT as _Instant

leadership = Table(
    "orchestrator_leadership",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("since", _Instant, nullable=False),  # the term's first instant
    Column("guarded", SmallInteger, nullable=False),  # 1: the holder's session also holds the lock
    Column("expires_at", _Instant, nullable=False),
    **INNODB,
)

#: The latest firing of each entry of beat's schedule, noted before it is sent.
firings = Table(
    "orchestrator_firings",
    metadata,
    Column("name", String(191), primary_key=True),
    Column("fired_at", _Instant, nullable=False),
    Column("task_id", String(155)),  # NULL: it has not fired yet
    Column("is_sent", SmallInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    **INNODB,
)

sweeps = Table(
    "orchestrator_sweeps",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("passes", BigInteger, nullable=False),
    Column("did", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("last_at", _Instant, nullable=False),
    Column("last_did", BigInteger, nullable=False),
    Column("last_seconds", Float, nullable=False),
    Column("last_error", String(512)),
    Column("epoch", BigInteger),
    **INNODB,
)
