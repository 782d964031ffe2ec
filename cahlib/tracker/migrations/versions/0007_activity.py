"""The work of people over time, their teams, and the bytes they delivered."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the tables; what was done before is in each person's sum, of no hour."""
    op.add_column("people", sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("people", sa.Column("team", sa.String(40)))
    op.create_index("ix_people_team", "people", ["team"])
    op.create_index("ix_workers_nickname", "workers", ["nickname"])
    finished = sa.text("finished IS NOT NULL")
    op.create_index(
        "latest", "shards", ["finished"], sqlite_where=finished, postgresql_where=finished
    )
    op.create_table(
        "teams",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("folded", sa.String(240), unique=True, nullable=False),
    )
    op.create_table(
        "activity",
        sa.Column("nickname", sa.String(40), primary_key=True),
        sa.Column("time", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("scraped", sa.Integer, nullable=False),
        sa.Column("done", sa.Integer, nullable=False),
        sa.Column("pairs", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_activity_time", "activity", ["time"])
    op.execute(
        "INSERT INTO activity (nickname, time, scraped, done, pairs, bytes) "
        "SELECT nickname, 0, scraped, done, pairs, 0 FROM people WHERE done + scraped > 0"
    )
