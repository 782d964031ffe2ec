"""The tables of the ledger and of the tracker; a single run uses the first two of them.

Times are seconds since 1970. Changes of these tables need a step in `migrations`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
    literal_column,
    text,
)

schema = MetaData()

shards = Table(
    "shards",
    schema,
    # The order in which they are worked through. In a tracker: twice the WAT's number, plus half.
    Column("number", Integer, primary_key=True),
    Column("id", String(200), unique=True, nullable=False),
    Column("url", String, nullable=False),
    Column("half", Integer, nullable=False),
    Column("state", String(10), nullable=False, default="todo", server_default="todo"),
    # 0; 1 for parcels that came by the old protocol, whose format is another
    Column("lane", Integer, nullable=False, default=0, server_default="0"),
    Column("attempts", Integer, nullable=False, default=0, server_default="0"),
    Column("error", String),
    Column("pairs", Integer, nullable=False, default=0, server_default="0"),
    Column("tally", JSON(none_as_null=True)),
    Column("worker", Integer),  # who holds it, or held it when its lease ran out
    Column("expires", Float, nullable=False, default=0, server_default="0"),
    Column("scraper", Integer),  # who brought the parcel
    Column("parcel", JSON(none_as_null=True)),  # url, and for ours sha256 and size
    Column("output", String),  # where its pairs are, as the worker says
    Column("finished", Float),
    # The latest ones, for the pages; empty in the ledger of a single run, which leaves it open.
    Index(
        "latest",
        "finished",
        sqlite_where=text("finished IS NOT NULL"),
        postgresql_where=text("finished IS NOT NULL"),
    ),
    # What a lease asks for: the first row of this index, however many shards there are.
    Index("following", "state", "lane", "attempts", "number"),
)


def is_one_of(state: ColumnElement[str], *names: str) -> ColumnElement[bool]:
    """Return whether a state is one of these, as constants: with parameters `held` is not used."""
    return state.in_([literal_column(f"'{name}'") for name in names])


_held = is_one_of(shards.c.state, "leased", "judging")
# What a worker holds, and what has run out: as many rows as there are leases.
Index("held", shards.c.worker, sqlite_where=_held, postgresql_where=_held)

pairs = Table(
    "pairs",
    schema,
    Column("uid", LargeBinary(16), primary_key=True),
    # a shard's number, but no foreign key: to look up 700 times that it exists costs PostgreSQL as
    # much as to insert the pairs, 2.8 ms
    Column("shard", Integer, nullable=False, index=True),
    sqlite_with_rowid=False,  # the key is the row: half the file
)

# Pairs that a shard has left to another one, so that they come back when that one is undone.
lost = Table(
    "lost",
    schema,
    Column("uid", LargeBinary(16), primary_key=True),
    Column("shard", ForeignKey("shards.number"), primary_key=True, index=True),
    Column("again", Integer, index=True),  # the second pass that is to bring the pair back
    sqlite_with_rowid=False,
)

# Second passes over shards, which take only the pairs that nobody has.
again = Table(
    "again",
    schema,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("of", Integer, nullable=False),  # the shard as it was added
    Column("checks", Integer, index=True),  # the finished shard that is done again to be compared
    Column("avoid", String(40), index=True),  # the nickname that is not given it
    Column("claimed", Integer),  # pairs of that shard
    Column("agreed", Integer),  # and how many of them the check found too
    # of a check: the similarities that it is compared with; then, if it disagrees, its own
    Column("scores", JSON(none_as_null=True)),
)

wats = Table(
    "wats",
    schema,
    Column("number", Integer, primary_key=True),
    Column("url", String, unique=True, nullable=False),
)

workers = Table(
    "workers",
    schema,
    Column("id", Integer, primary_key=True),
    Column("name", String(60), unique=True, nullable=False),
    Column("nickname", String(40), nullable=False, index=True),
    Column("kind", String(6), nullable=False),
    Column("secret", LargeBinary(32), unique=True, nullable=False),  # its sha256
    Column("first_seen", Float, nullable=False),
    Column("last_seen", Float, nullable=False),
    Column("gone", Boolean, nullable=False),
    Column("progress", String(200), nullable=False),
    Column("scraped", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("pairs", BigInteger, nullable=False),
)

# The leaderboard, and the sums of everything: each completion changes one row of it, so that
# nothing is counted by looking at all shards, and no row is one that everybody waits for.
people = Table(
    "people",
    schema,
    Column("nickname", String(40), primary_key=True),
    Column("scraped", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("pairs", BigInteger, nullable=False),
    Column("folded", String(240)),  # what it looks like; none of a second such name
    Column("secret", LargeBinary(32)),  # its sha256, if somebody owns the name
    Column("banned", Boolean, nullable=False, default=False, server_default=false()),
    Column("bytes", BigInteger, nullable=False, default=0, server_default="0"),  # of the parcels
    Column("team", String(40), index=True),
    Index("ix_people_folded", "folded", unique=True),
)

# Teams, in the spelling of whoever named each first.
teams = Table(
    "teams",
    schema,
    Column("name", String(40), primary_key=True),
    Column("folded", String(240), unique=True, nullable=False),  # what it looks like
)

# What people did in five minutes, an hour or a day, by its start. The row of time 0 is the sum of a
# person's rows and of what was before there were any.
activity = Table(
    "activity",
    schema,
    Column("nickname", String(40), primary_key=True),
    Column("time", Integer, primary_key=True, autoincrement=False, index=True),
    Column("scraped", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("pairs", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

failures = Table(
    "failures",
    schema,
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("worker", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("error", String, nullable=False),
)

# One row, which is written to see whether anything can be.
health = Table(
    "health",
    schema,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
)

history = Table(
    "history",
    schema,
    Column("time", Integer, primary_key=True, autoincrement=False),  # the start of five minutes
    Column("done", Integer, nullable=False),
    Column("scraped", Integer, nullable=False),
    Column("pairs", BigInteger, nullable=False),
    Column("workers", Integer, nullable=False),
)
