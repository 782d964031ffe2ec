"""The tables that a tracker has beside those of a ledger.

Times are seconds since 1970. Changes of these tables need a step in `migrations`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    false,
)

from cahlib.ledger.schema import metadata as metadata

# pairs that a shard left to another one, so that it gets them back when that one is undone
left_pairs = Table(
    "lost",
    metadata,
    Column("uid", LargeBinary(16), primary_key=True),
    Column("shard", ForeignKey("shards.number"), primary_key=True, index=True),
    Column("again", Integer, index=True),  # the second pass that is to recover the pair
    sqlite_with_rowid=False,
)

# second passes over shards, which take only pairs that no shard has
second_passes = Table(
    "again",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("of", Integer, nullable=False),  # the original shard
    Column("checks", Integer, index=True),  # the finished shard that it repeats as a spot check
    Column("avoid", String(40), index=True),  # the nickname that may not lease it
    Column("claimed", Integer),  # pairs of that shard
    Column("agreed", Integer),  # and how many of them the check found as well
    # of a check: the similarities that it is compared with; if it disagrees, then its own
    Column("scores", JSON(none_as_null=True)),
)

wats = Table(
    "wats",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("url", String, unique=True, nullable=False),
)

workers = Table(
    "workers",
    metadata,
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

# the leaderboard, and the totals: each completion changes one row, so that nothing is counted by
# scanning all shards, and no row is contended by everybody
people = Table(
    "people",
    metadata,
    Column("nickname", String(40), primary_key=True),
    Column("scraped", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("pairs", BigInteger, nullable=False),
    Column("folded", String(240)),  # see `nicknames.fold`; NULL for a later lookalike
    Column("secret", LargeBinary(32)),  # its sha256, if the name has an owner
    Column("banned", Boolean, nullable=False, default=False, server_default=false()),
    Column("bytes", BigInteger, nullable=False, default=0, server_default="0"),  # of the parcels
    Column("team", String(40), index=True),
    Index("ix_people_folded", "folded", unique=True),
)

# teams, as first spelled
teams = Table(
    "teams",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("folded", String(240), unique=True, nullable=False),  # see `nicknames.fold`
)

# what people did in five minutes, an hour or a day, by its start; the row of time 0 is the sum of a
# person's rows and of what preceded them
activity = Table(
    "activity",
    metadata,
    Column("nickname", String(40), primary_key=True),
    Column("time", Integer, primary_key=True, autoincrement=False, index=True),
    Column("scraped", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("pairs", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

failures = Table(
    "failures",
    metadata,
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("worker", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
    Column("error", String, nullable=False),
)

# one row, written to find out whether the database accepts writes
health = Table(
    "health",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("time", Float, nullable=False),
)

history = Table(
    "history",
    metadata,
    Column("time", Integer, primary_key=True, autoincrement=False),  # the start of five minutes
    Column("done", Integer, nullable=False),
    Column("scraped", Integer, nullable=False),
    Column("pairs", BigInteger, nullable=False),
    Column("workers", Integer, nullable=False),
)
