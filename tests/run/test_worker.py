"""What goes wrong for a CPU volunteer alone leaves the crawl as it was."""

import logging
import threading
from contextlib import contextmanager

import pytest
from sqlalchemy import delete

from cahlib.commands import cli
from cahlib.core.config import Crawl, Job, replace_settings
from cahlib.core.errors import RunError
from cahlib.core.records import Shard
from cahlib.crawl.shards import list_shards
from cahlib.demo import wat
from cahlib.demo.web import Answer, Web
from cahlib.engine.local import LocalEngine
from cahlib.ledger.database import Database
from cahlib.ledger.schema import shards
from cahlib.parcel import parcel as parcels
from cahlib.run.worker import work_for_tracker
from cahlib.tracker import admin, statistics
from cahlib.tracker.app import create_app
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import NotHeld, TrackerRules
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.schema import wats
from cahlib.tracker.service import TrackerSettings
from tests.world import small, tables
from tests.world.jobs import until
from tests.world.ports import free_port
from tests.world.trackers import serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)
EMPTY = Answer(body=wat.member("warcinfo", "", "application/warc-fields", b""))


@contextmanager
def crawl(tmp_path, answer, *, upload="", held=1):
    """A tracker of a crawl whose files all have this answer: web, job of a worker, database."""
    database = Database(f"sqlite:///{tmp_path / 'tracker.sqlite'}")
    migrate(database)
    rules = TrackerRules(upload_url=upload or f"file://{tmp_path / 'parcels'}", max_held=held)
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


def test_tables_are_scraped_for_a_tracker_where_it_says(tmp_path):
    """As `cah tracker add` lists them; a table that a tracker names on this machine is not read."""
    table = tables.write(tmp_path / "t.parquet", tables.rows(25, width=int))
    line = ["tracker", "add", "--database", f"sqlite:///{tmp_path / 'tracker.sqlite'}"]
    line += ["--shard-links", "10", "--extra-columns", "width", "--links"]
    body = Answer(body=table.read_bytes(), type="application/octet-stream")
    with crawl(tmp_path, EMPTY) as (_, job, database), small.Pictures() as pictures:
        with database.write() as connection:
            connection.execute(delete(shards))
            connection.execute(delete(wats))
        with Web({"/t.parquet": body}) as web:
            assert cli.main([*line, str(table)]) == 2
            assert cli.main([*line, url := f"http://{web.address}/t.parquet"]) == 0
            admin.add_wats(database, list_shards(Crawl(links=(str(table),))))
            links = Crawl(links=(url,), shard_links=10, extra_columns=("width",))
            listed = list(list_shards(links))
            job = replace_settings(job, replay=pictures.address, per_second=0)
            with pytest.raises(RunError, match="table or parcel URL is not allowed"):
                work_for_tracker(job, tick=0.1)
        for path in (tmp_path / "parcels").iterdir():  # <shard>.<a mark>.tar, and .json
            path.rename(path.with_name(path.stem.partition(".")[0] + path.suffix))
        found = [
            (image.candidate.url, image.candidate.extra)
            for shard in listed
            for image in parcels.read_images(parcels.find_parcel(tmp_path / "parcels", shard))
        ]
        made = [(row["url"], {"width": row["width"]}) for row in tables.rows(25, width=int)]
        assert sorted(found) == sorted(made)


def as_it_was(database):
    return {(row["state"], row["error"]) for row in statistics.export_shards(database)} == {
        ("todo", None)
    }


def test_who_is_banned_asks_no_more_and_no_shard_is_blamed(tmp_path):
    with crawl(tmp_path, Answer(status=403)) as (web, job, database):
        with pytest.raises(RunError, match="403"):
            work_for_tracker(job, tick=0.1)
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
        assert work_for_tracker(job, listener, stop=stop, tick=0.1).parcels == 0
        assert as_it_was(database)


def test_what_is_uploaded_when_a_worker_is_stopped_is_delivered(tmp_path, monkeypatch):
    stop, take = threading.Event(), LocalEngine.take

    def take_when_both_are_done(engine, *, timeout):
        if not stop.is_set():
            until(lambda: engine._finished.qsize() == 2)
            stop.set()
        return take(engine, timeout=timeout)

    monkeypatch.setattr(LocalEngine, "take", take_when_both_are_done)
    with crawl(tmp_path, EMPTY, held=2) as (_, job, database):
        job = replace_settings(job, workers="2")
        assert work_for_tracker(job, stop=stop, tick=0.1).parcels == 2
        assert statistics.crawl_counts(database).parcels == 2


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
        assert work_for_tracker(job, listener, stop=stop, tick=0.1).parcels >= 1
    assert list((tmp_path / "parcels").iterdir()) == []
