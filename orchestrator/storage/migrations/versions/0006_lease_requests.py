"""What a lease without a job was asked for, so that its key cannot be used for another request."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Leases from before have none, and are taken for what is asked for."""
    op.add_column("orchestrator_lease_holders", sa.Column("request_digest", sa.String(length=64)))
