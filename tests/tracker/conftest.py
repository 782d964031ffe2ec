"""Each test of the tracker's store runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import shutil

import pytest

from cahlib.core.records import Shard
from cahlib.ledger.database import Database
from cahlib.tracker import admin
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import TrackerRules
from tests.world import postgres as servers

_numbers = itertools.count()


class Clock:
    """A time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def postgres():
    if reason := servers.missing():
        pytest.skip(reason)
    with servers.postgres() as server:
        yield server


def _migrated(url):
    database = Database(url)
    migrate(database)
    database.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory):
    """The file of a migrated database, to be copied: to migrate one takes ten times as long."""
    path = tmp_path_factory.mktemp("template") / "tracker.sqlite"
    _migrated(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres):
    _migrated(postgres.create("template"))
    return "template"


@pytest.fixture
def sqlite_url(tmp_path, sqlite_template):
    """The address of a migrated database in a file."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'tracker.sqlite')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """An address of a database: without tables, or migrated for the fixture `database`."""
    ready = "database" in request.fixturenames
    if request.param == "sqlite":
        bare = f"sqlite:///{tmp_path / 'tracker.sqlite'}"
        return request.getfixturevalue("sqlite_url") if ready else bare
    template = request.getfixturevalue("postgres_template") if ready else "template1"
    return request.getfixturevalue("postgres").create(f"tracker{next(_numbers)}", template=template)


@pytest.fixture
def database(url):
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease_store(database, clock):
    return LeaseStore(
        database, TrackerRules(lease_seconds=900, max_failures=3, max_attempts=5), clock=clock
    )


def wats(count):
    """The shards of so many WAT files."""
    return [
        Shard(id=f"wat{n:06}-{half}", url=f"https://data.example.org/{n:06}.warc.wat.gz", half=half)
        for n in range(count)
        for half in (0, 1)
    ]


@pytest.fixture
def fill(database):
    return lambda count: admin.add_wats(database, wats(count))
