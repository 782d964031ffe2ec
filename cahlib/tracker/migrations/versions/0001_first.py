"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "shards",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(200), nullable=False, unique=True),
        sa.Column("url", sa.String, nullable=False),
        sa.Column("half", sa.Integer, nullable=False),
        sa.Column("state", sa.String(10), nullable=False, server_default="todo"),
        sa.Column("lane", sa.Integer, nullable=False, server_default="0"),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("error", sa.String),
        sa.Column("pairs", sa.Integer, nullable=False, server_default="0"),
        sa.Column("tally", sa.JSON),
        sa.Column("worker", sa.Integer),
        sa.Column("expires", sa.Float, nullable=False, server_default="0"),
        sa.Column("scraper", sa.Integer),
        sa.Column("parcel", sa.JSON),
        sa.Column("output", sa.String),
        sa.Column("finished", sa.Float),
    )
    op.create_index("following", "shards", ["state", "lane", "attempts", "number"])
    held = sa.text("state IN ('leased', 'judging')")
    op.create_index("held", "shards", ["worker"], sqlite_where=held, postgresql_where=held)
    op.create_table(
        "pairs",
        sa.Column("uid", sa.LargeBinary(16), primary_key=True),
        sa.Column("shard", sa.Integer, sa.ForeignKey("shards.number"), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_pairs_shard", "pairs", ["shard"])
    op.create_table(
        "wats",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("url", sa.String, nullable=False, unique=True),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(60), nullable=False, unique=True),
        sa.Column("nickname", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(6), nullable=False),
        sa.Column("secret", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("first_seen", sa.Float, nullable=False),
        sa.Column("last_seen", sa.Float, nullable=False),
        sa.Column("gone", sa.Boolean, nullable=False),
        sa.Column("progress", sa.String(200), nullable=False),
        sa.Column("scraped", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("pairs", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "people",
        sa.Column("nickname", sa.String(40), primary_key=True),
        sa.Column("scraped", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("pairs", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "failures",
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("worker", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("error", sa.String, nullable=False),
    )
    op.create_table(
        "history",
        sa.Column("time", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("scraped", sa.Integer, nullable=False),
        sa.Column("pairs", sa.BigInteger, nullable=False),
        sa.Column("workers", sa.Integer, nullable=False),
    )
