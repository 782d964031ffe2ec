"""Several runs and a pair of CPU and GPU volunteers finish one crawl, as processes of their own.

It earns its half minute: nothing less shows that the datasets of all hold each pair once.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter

import pyarrow.parquet as pq

from cahlib import demo
from cahlib.core.config import Crawl, replace_settings
from cahlib.core.records import Shard
from cahlib.crawl.shards import list_shards
from cahlib.demo.web import Web
from cahlib.ledger.database import Database
from cahlib.run.pipeline import run
from cahlib.tracker import admin, statistics
from cahlib.tracker.app import create_app
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.migrate import migrate
from cahlib.tracker.models import TrackerRules, WorkerKind
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world import command, small
from tests.world.ports import free_port
from tests.world.trackers import serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)


def started(what, job, tracker, nickname, output):
    mine = replace_settings(
        job, tracker=tracker, nickname=nickname, output=str(output), crawl="", workers=1
    )
    return command.started(what, *command.options(mine), cwd=output.parent)


def uids(folder):
    return [
        uid
        for path in sorted((folder / "metadata").glob("*.parquet"))
        for uid in pq.read_table(path, columns=["uid"])["uid"].to_pylist()
    ]


def test_everybody_finishes_one_crawl_and_each_pair_is_in_one_dataset(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'tracker.sqlite'}")
    migrate(database)
    with small.Pictures() as web:
        # the same crawl under several names: each pair is in many shards
        for n in range(4):
            (tmp_path / f"demo{n}.warc.wat.gz").write_bytes(small.file("same", links=40))
        job = small.job(tmp_path, tmp_path / "x", web)
        admin.add_wats(database, list_shards(Crawl(crawl=str(tmp_path / "*.wat.gz"))))
        rules = TrackerRules(upload_url=f"file://{tmp_path / 'parcels'}", lease_seconds=60)
        app = create_app(
            TrackerSettings(database=str(database.engine.url), rules=rules, limits=ANY)
        )
        with serving(app) as tracker:
            who = [("run", "ann"), ("run", "bob"), ("worker", "carl"), ("gpu", "gus")]
            running = {
                name: started(what, job, tracker, name, tmp_path / name) for what, name in who
            }
            said = {name: process.communicate()[0] for name, process in running.items()}
    assert {name: process.returncode for name, process in running.items()} == dict.fromkeys(
        said, 0
    ), said
    counts = statistics.crawl_counts(database)
    database.close()
    assert (counts.done, counts.failed, counts.total) == (8, 0, 8), said
    made = Counter(uid for name in ("ann", "bob", "gus") for uid in uids(tmp_path / name))
    assert made and set(made.values()) == {1}
    assert counts.pairs == len(made)
    assert not list((tmp_path / "parcels").glob("*"))


def test_a_gpu_worker_blames_no_parcel_for_storage_that_is_away(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    upload = f"http://127.0.0.1:{free_port()}"
    database = Database(f"sqlite:///{tmp_path / 'tracker.sqlite'}")
    migrate(database)
    admin.add_wats(
        database, [Shard(id=f"w-{half}", url="https://x/w", half=half) for half in (0, 1)]
    )
    lease_store = LeaseStore(database, TrackerRules())
    cpu = lease_store.register("carl", WorkerKind.CPU)[1]
    while lease := lease_store.lease(cpu):
        parcel = {"url": f"{upload}/{lease.shard.id}.tar", "sha256": "0" * 64, "size": 5}
        lease_store.deliver(cpu, lease.number, parcel)
    stop = threading.Event()

    def listener(_):
        if "cannot be reached" in caplog.text:
            stop.set()

    settings = TrackerSettings(
        database=str(database.engine.url), rules=TrackerRules(upload_url=upload), limits=ANY
    )
    with serving(create_app(settings)) as tracker, Web({}) as web:
        job = demo.job(str(tmp_path / "gus"), web)
        run(
            replace_settings(job, tracker=tracker, nickname="gus", crawl="", workers=1),
            listener,
            stop=stop,
            tick=0.1,
            role="gpu",
        )
    rows = list(statistics.export_shards(database))
    assert [(row["state"], row["error"]) for row in rows] == [("scraped", None)] * 2
    database.close()
