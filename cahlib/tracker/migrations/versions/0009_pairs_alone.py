"""Pairs are inserted without a look for their shard."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Drop the foreign key; SQLite, which cannot, does not enforce it."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("pairs_shard_fkey", "pairs", type_="foreignkey")
