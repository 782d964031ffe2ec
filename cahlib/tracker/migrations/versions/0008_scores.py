"""Spot checks compare the similarities of pairs."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the similarities; a check that was begun before compares pairs alone."""
    op.add_column("again", sa.Column("scores", sa.JSON))
