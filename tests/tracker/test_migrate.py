"""A database is brought to the tables that the code needs, with all that is in it."""

import json

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from cahlib import tracker
from cahlib.ledger.database import Database
from cahlib.tracker import statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import TrackerRules, WorkerKind
from cahlib.tracker.schema import metadata
from cahlib.tracker.standings import list_contributors

A, B, C = (bytes([n]) * 16 for n in range(3))


@pytest.fixture
def empty(url):
    database = Database(url)
    yield database
    database.close()


def revisions():
    config = Config()
    config.set_main_option("script_location", f"{tracker.__path__[0]}/migrations")
    return [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()]


def test_the_migrations_lead_to_the_tables_of_the_schema(empty):
    migrate(empty)
    migrate(empty)
    with empty.read() as connection:
        options = {"compare_server_default": True}
        if empty.is_sqlite:  # it keeps a foreign key that it never enforced
            options["include_object"] = lambda each, _, kind, *more: (
                kind != "foreign_key_constraint" or each.table.name != "pairs"
            )
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def fill(database):
    """Write down a crawl in the columns of the first release."""
    states = [("done", 1, 2), ("leased", 2, 0), ("todo", None, 0), ("failed", None, 0)]
    with database.write() as connection:

        def insert(table, **values):
            columns = ", ".join(values)
            places = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({places})"), values)

        for number in range(2):
            insert("wats", number=number, url=f"https://x/{number}.wat.gz")
        for number, (state, worker, count) in enumerate(states):
            insert(
                "shards", number=number, id=f"w{number}", url=f"https://x/{number // 2}.wat.gz",
                half=number % 2, state=state, worker=worker, pairs=count, expires=9e9,
                attempts=1, tally=json.dumps({"judge": {"in": 2, "out": 2, "lost": {}}}),
            )  # fmt: skip
        for uid, shard in ((A, 0), (B, 0), (C, 1)):
            insert("pairs", uid=uid, shard=shard)
        for number, name in enumerate(("ann", "Ann", "bob"), 1):
            insert(
                "workers", id=number, name=f"w-{number}", nickname=name, kind="hybrid",
                secret=bytes([number]) * 32, first_seen=1.0, last_seen=2.0, gone=False,
                progress="", scraped=0, done=number % 2, pairs=2,
            )  # fmt: skip
            insert("people", nickname=name, scraped=0, done=int(name == "ann"), pairs=2)
        insert("failures", shard=3, worker=3, time=1.0, error="broken")
        insert("history", time=300, done=1, scraped=0, pairs=2, workers=2)
        if not database.is_sqlite:
            connection.execute(text("SELECT setval('workers_id_seq', 3)"))


@pytest.mark.parametrize("revision", revisions())
def test_what_an_earlier_version_wrote_is_kept(empty, revision):
    migrate(empty, revision)
    fill(empty)
    migrate(empty)
    counts = statistics.crawl_counts(empty)
    assert (counts.total, counts.done, counts.leased, counts.failed) == (4, 1, 1, 1)
    assert (
        counts.pairs == 6
        and len(statistics.history_since(empty, 0)) == 1
        and len(statistics.stuck_shards(empty)) == 1
    )
    sums = {
        one.name: (one.now["all"].pairs, one.now["day"].pairs)
        for one in list_contributors(empty, 9e9)
    }
    assert sums == {
        "ann": (2, 0 if revision < "0007" else 2)
    }  # of what was before, nobody knows when
    lease_store = LeaseStore(empty, TrackerRules())
    secret = lease_store.register("carl", WorkerKind.HYBRID, nickname_secret="his")[1]
    leased = lease_store.lease(secret).number
    taken = set(lease_store.claimed_pairs(secret, leased, [A.hex(), B.hex(), C.hex()]))
    # claims bound before there was a second revision, also those of shards that were in work
    assert taken == {A.hex(), B.hex()} | ({C.hex()} if revision != "0001" else set())
    lease_store.register("Ann" if revision > "0002" else "ann", WorkerKind.HYBRID)
