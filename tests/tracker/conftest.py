"""Each test of the tracker's store runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools

import pytest

from cahlib.core.records import Shard
from cahlib.ledger.database import Database
from cahlib.tracker import admin
from cahlib.tracker.leases import Crowd
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import Rules
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


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tracker.sqlite'}"
    return request.getfixturevalue("postgres").create(f"tracker{next(_numbers)}")


@pytest.fixture
def database(url):
    database = Database(url)
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def crowd(database, clock):
    return Crowd(database, Rules(lease=900, failures=3, attempts=5), clock=clock)


def wats(count):
    """The shards of so many WAT files."""
    return [
        Shard(id=f"wat{n:06}-{half}", url=f"https://data.example.org/{n:06}.warc.wat.gz", half=half)
        for n in range(count)
        for half in (0, 1)
    ]


@pytest.fixture
def fill(database):
    return lambda count: admin.add(database, wats(count))
