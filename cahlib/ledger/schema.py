"""The tables of a run's ledger; the tracker, which has more, uses the same two.

Times are seconds since 1970. Changes of these tables need a step in `cahlib.tracker.migrations`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    literal_column,
    text,
)

metadata = MetaData()

shards = Table(
    "shards",
    metadata,
    # the order of work; in a tracker: twice the number of the WAT file, plus half
    Column("number", Integer, primary_key=True),
    Column("id", String(200), unique=True, nullable=False),
    Column("url", String, nullable=False),
    Column("half", Integer, nullable=False),
    Column("state", String(10), nullable=False, default="todo", server_default="todo"),
    # 0; 1 for parcels of the legacy protocol, which have another format; 2 for retries of links
    Column("lane", Integer, nullable=False, default=0, server_default="0"),
    Column("attempts", Integer, nullable=False, default=0, server_default="0"),
    Column("error", String),
    Column("pairs", Integer, nullable=False, default=0, server_default="0"),
    Column("tally", JSON(none_as_null=True)),
    Column("worker", Integer),  # that holds it, or held it when its lease expired
    Column("expires", Float, nullable=False, default=0, server_default="0"),
    Column("scraper", Integer),  # that delivered the parcel
    Column("parcel", JSON(none_as_null=True)),  # url; of our own workers also sha256 and size
    Column("output", String),  # where the worker says its pairs are
    Column("finished", Float),
    # the latest shards, for the pages; empty in the ledger of a single run, which sets no time
    Index(
        "latest",
        "finished",
        sqlite_where=text("finished IS NOT NULL"),
        postgresql_where=text("finished IS NOT NULL"),
    ),
    # a lease reads the first row of this index, however many shards there are
    Index("following", "state", "lane", "attempts", "number"),
)


def is_one_of(state: ColumnElement[str], *names: str) -> ColumnElement[bool]:
    """Return a condition on a state, with constants: with parameters, `held` is not used."""
    return state.in_([literal_column(f"'{name}'") for name in names])


_held = is_one_of(shards.c.state, "leased", "judging")
# leases by worker, and expired ones: as many rows as there are leases
Index("held", shards.c.worker, sqlite_where=_held, postgresql_where=_held)

pairs = Table(
    "pairs",
    metadata,
    Column("uid", LargeBinary(16), primary_key=True),
    # a shard's number, but no foreign key: checking 700 times that it exists costs PostgreSQL as
    # much as inserting the pairs, 2.8 ms
    Column("shard", Integer, nullable=False, index=True),
    sqlite_with_rowid=False,  # the key is the row, which halves the file
)
