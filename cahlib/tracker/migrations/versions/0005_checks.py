"""Some finished shards are done a second time, by somebody else, to see whether both agree."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Say of a second pass what it checks."""
    op.add_column("again", sa.Column("checks", sa.Integer))
    op.add_column("again", sa.Column("avoid", sa.String(40)))
    op.add_column("again", sa.Column("claimed", sa.Integer))
    op.add_column("again", sa.Column("agreed", sa.Integer))
