"""Nicknames have owners, and no two of them look alike."""

import sqlalchemy as sa
from alembic import op

from cahlib.tracker.nicknames import fold

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Fold the names there are; of those that look alike, the one that did most has the look."""
    people = sa.table(
        "people",
        sa.column("nickname"),
        sa.column("done"),
        sa.column("scraped"),
        sa.column("folded"),
    )
    op.add_column("people", sa.Column("folded", sa.String(240)))
    op.add_column("people", sa.Column("secret", sa.LargeBinary(32)))
    op.add_column(
        "people", sa.Column("banned", sa.Boolean, nullable=False, server_default=sa.false())
    )
    connection, seen = op.get_bind(), set()
    most = sa.select(people.c.nickname).order_by(
        (people.c.done + people.c.scraped).desc(), people.c.nickname
    )
    for name in connection.execute(most).scalars().all():
        if (look := fold(name)) not in seen:
            seen.add(look)
            mine = people.c.nickname == name
            connection.execute(sa.update(people).where(mine).values(folded=look))
    op.create_index("ix_people_folded", "people", ["folded"], unique=True)
