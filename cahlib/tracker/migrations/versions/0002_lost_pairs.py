"""Pairs belong to completed shards alone; who left one to another is known, and gets it back."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Forget the claims of shards that are not completed, which bind nobody any more."""
    op.execute("DELETE FROM pairs WHERE shard IN (SELECT number FROM shards WHERE state <> 'done')")
    op.create_table(
        "lost",
        sa.Column("uid", sa.LargeBinary(16), primary_key=True),
        sa.Column("shard", sa.Integer, sa.ForeignKey("shards.number"), primary_key=True),
        sa.Column("again", sa.Integer),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_lost_shard", "lost", ["shard"])
    op.create_index("ix_lost_again", "lost", ["again"])
    op.create_table(
        "again",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("of", sa.Integer, nullable=False),
    )
