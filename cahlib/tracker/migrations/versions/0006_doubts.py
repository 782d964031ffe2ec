"""Checks are found by the shard that they are of, and by the person who completed it."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the indexes."""
    op.create_index("ix_again_checks", "again", ["checks"])
    op.create_index("ix_again_avoid", "again", ["avoid"])
