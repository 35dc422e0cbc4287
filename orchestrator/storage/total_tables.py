"""What has happened since the database was made, counted: the history that tells the same is pruned."""

from sqlalchemy import BigInteger, Column, PrimaryKeyConstraint, String, Table

from orchestrator.storage.columns import INNODB, metadata

#: A row for each host or pool, so that hosts that count at once do not wait for each other.
totals = Table(
    "orchestrator_totals",
    metadata,
    Column("name", String(32), nullable=False),
    Column("label", String(64), nullable=False),  # of what: a host or a pool; empty where nothing is told apart
    Column("total", BigInteger, nullable=False),
    PrimaryKeyConstraint("name", "label"),
    **INNODB,
)
