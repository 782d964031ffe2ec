"""What goes wrong for a CPU volunteer alone leaves the crawl as it was."""

import logging
import threading
from contextlib import contextmanager

import pytest

from cahlib.core.config import Job
from cahlib.core.errors import RunError
from cahlib.core.records import Shard
from cahlib.demo import wat
from cahlib.demo.web import Answer, Web
from cahlib.ledger.database import Database
from cahlib.run.worker import run_worker
from cahlib.tracker import admin, statistics
from cahlib.tracker.app import create_app
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import NotHeld, TrackerRules
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world.ports import free_port
from tests.world.trackers import serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)
EMPTY = Answer(body=wat.member("warcinfo", "", "application/warc-fields", b""))


@contextmanager
def crawl(tmp_path, answer, *, upload=""):
    """A tracker of a crawl whose files all have this answer: web, job of a worker, database."""
    database = Database(f"sqlite:///{tmp_path / 'tracker.sqlite'}")
    migrate(database)
    rules = TrackerRules(upload_url=upload or f"file://{tmp_path / 'parcels'}", max_held=1)
    app = create_app(TrackerSettings(database=str(database.engine.url), rules=rules, limits=ANY))
    paths = [f"/{n}.warc.wat.gz" for n in range(5)]
    with Web({path: answer for path in paths}) as web, serving(app) as tracker:
        admin.add_wats(
            database,
            [
                Shard(id=f"w{n}-{half}", url=f"http://{web.address}{path}", half=half)
                for n, path in enumerate(paths)
                for half in (0, 1)
            ],
        )
        job = Job.from_values(
            {
                "tracker": tracker,
                "nickname": "ann",
                "contact": "ann@example.org",
                "output": str(tmp_path / "ann"),
                "workers": "1",
            }
        )
        yield web, job, database
    database.close()


def as_it_was(database):
    return {(row["state"], row["error"]) for row in statistics.export_shards(database)} == {
        ("todo", None)
    }


def test_who_is_banned_asks_no_more_and_no_shard_is_blamed(tmp_path):
    with crawl(tmp_path, Answer(status=403)) as (web, job, database):
        with pytest.raises(RunError, match="403"):
            run_worker(job, tick=0.1)
        assert len(web.requests) == 1
        assert as_it_was(database)


def test_no_shard_is_blamed_for_storage_that_is_away(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    upload = f"http://127.0.0.1:{free_port()}/parcels"
    stop = threading.Event()

    def listener(_):
        if "cannot be reached" in caplog.text:
            stop.set()

    with crawl(tmp_path, EMPTY, upload=upload) as (_, job, database):
        assert run_worker(job, listener, stop=stop, tick=0.1).parcels == 0
        assert as_it_was(database)


def test_a_parcel_that_comes_too_late_is_taken_away_again(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)

    def too_late(*arguments, **options):
        raise NotHeld("It is another's.")

    monkeypatch.setattr(LeaseStore, "deliver", too_late)
    stop = threading.Event()

    def listener(_):
        if "another's" in caplog.text:
            stop.set()

    with crawl(tmp_path, EMPTY) as (_, job, _):
        assert run_worker(job, listener, stop=stop, tick=0.1).parcels >= 1
    assert list((tmp_path / "parcels").iterdir()) == []
