"""A run's ledger that takes its shards from a tracker: nothing is lost when one goes away."""

from __future__ import annotations

import json
import threading
import time

import pytest
from sqlalchemy import select

from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import Shard, Stage, Stats
from cahlib.core.secret_store import secret_path
from cahlib.dataset.write import shard_writer
from cahlib.ledger.client import TrackerClient, WorkerOptions
from cahlib.ledger.local import LocalLedger
from cahlib.ledger.remote import RemoteLedger
from cahlib.run.open_run import open_run_directory
from cahlib.tracker import admin, statistics
from cahlib.tracker.app import create_app
from cahlib.tracker.models import TrackerRules, WorkerKind
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.schema import second_passes
from cahlib.tracker.service import TrackerSettings
from tests.world import judged
from tests.world.jobs import until
from tests.world.ports import free_port
from tests.world.trackers import serving

from .conftest import Clock

ANY = RequestLimits(address=0, worker=0, newcomers=0)


@pytest.fixture
def app(url, database, fill):
    fill(3)
    rules = TrackerRules(lease_seconds=60, upload_url="s3://parcels")
    return create_app(TrackerSettings(database=url, rules=rules, limits=ANY, fresh=0))


def deliver_all(app, where):
    """Somebody brings the parcels of all shards."""
    lease_store = app.state.service.leases
    cpu = lease_store.register("carl", WorkerKind.CPU)[1]
    while lease := lease_store.lease(cpu):
        lease_store.deliver(cpu, lease.number, {"url": where, "sha256": "0" * 64, "size": 5})


def one_pair():
    stats = Stats()
    stats.entered[Stage.JUDGE] = stats.left[Stage.JUDGE] = 1
    stats.entered[Stage.FETCH] = stats.left[Stage.FETCH] = stats.left[Stage.CHOOSE] = 1
    stats.entered[Stage.CHOOSE] = 1
    return stats


class Run:
    """A run's folder, and its launches."""

    def __init__(self, folder, address, kind="hybrid"):
        self.folder, self.address, self.kind = folder, address, kind
        folder.mkdir()

    def launch(self, *, clock=time.monotonic):
        ledger = LocalLedger(self.folder / "ledger.sqlite")
        ledger.recover()
        options = WorkerOptions(
            nickname="ann", kind=self.kind, heartbeat_seconds=0.05, poll_seconds=0.05
        )
        tracker = TrackerClient(self.address)
        path = self.folder / "tracker.json"
        return ledger, RemoteLedger(ledger, tracker, path, options, clock=clock)


def test_another_job_that_takes_the_place_of_one_that_came_to_nothing_is_the_same_worker(
    app, tmp_path
):
    with serving(app) as address:
        job = Job.from_values(
            {"tracker": address, "nickname": "ann", "output": str(tmp_path / "dataset")}
        )
        with open_run_directory(job, role="hybrid", stop=threading.Event()):
            identity = secret_path(tmp_path / "dataset/run/tracker", "secret")
            secret = identity.read_text()
        with open_run_directory(
            replace_settings(job, threshold=0.9), role="hybrid", stop=threading.Event()
        ) as remote:
            assert identity.read_text() == secret
            first = remote.lease()
            remote.commit(first, [], one_pair())
            remote.mark_done(first)
        with (
            pytest.raises(ConfigError, match="the same settings: threshold"),
            open_run_directory(job, role="hybrid", stop=threading.Event()),
        ):
            pass


def test_what_is_done_is_told_and_what_is_not_is_given_back(app, database, tmp_path):
    with serving(app) as address:
        ledger, remote = Run(tmp_path / "a", address).launch()
        with remote:
            first, second, third = (remote.lease() for _ in range(3))
            remote.commit(first, ["ab" * 16], one_pair())
            remote.mark_done(first)
            remote.fail(second, "broken", attempts=3)
            until(lambda: statistics.crawl_counts(database).done == 1)
            assert remote.has_more() and third
        assert ledger.counts().done == ledger.counts().total == 1
        ledger.close()
        counts = statistics.crawl_counts(database)
        assert (counts.done, counts.pairs, counts.leased, counts.todo) == (1, 1, 0, 5)
        assert statistics.list_leaders(database)[0]["nickname"] == "ann"


def test_a_tracker_with_spot_checks_hears_how_similar_the_pairs_are(url, database, fill, tmp_path):
    fill(1)
    app = create_app(
        TrackerSettings(database=url, rules=TrackerRules(verify_share=1), limits=ANY, fresh=0)
    )
    folder = tmp_path / "dataset"
    with serving(app) as address:
        job = Job.from_values({"tracker": address, "nickname": "ann", "output": str(folder)})
        with open_run_directory(job, role="hybrid", stop=threading.Event()) as remote:
            shard = remote.lease()
            manifest = judged.write(folder, shard=shard.id)
            remote.commit(shard, shard_writer.read_uids(folder, manifest), manifest.stats)
            remote.mark_done(shard)
            until(lambda: statistics.crawl_counts(database).done == 1)
    with database.read() as connection:
        said = connection.execute(select(second_passes.c.scores)).scalar_one()
    known = shard_writer.read_similarities(folder, manifest)
    assert len(set(known.values())) > 5
    assert said == {uid: pytest.approx(known[uid], abs=1e-4) for uid in known}


def test_a_killed_run_goes_on_with_its_leases_and_tells_what_it_had_not_told(
    app, database, tmp_path
):
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        ledger, remote = run.launch()
        remote.__enter__()
        first, second = remote.lease(), remote.lease()
        remote.commit(first, ["ab" * 16], one_pair())
        # Killed between commit and done: the reporter stops, nothing is given back.
        remote._reporter.stop()
        ledger.close()
        ledger, again = run.launch()
        with again:
            assert again.in_state("sealed") == [first]
            assert again.lease() == second
            again.mark_done(first)
            until(lambda: statistics.crawl_counts(database).done == 1)
            assert statistics.crawl_counts(database).leased == 1
        ledger.close()


def test_work_goes_on_while_the_tracker_is_away(url, database, fill, tmp_path):
    fill(3)
    settings = TrackerSettings(database=url, limits=ANY, fresh=0)
    port = free_port()
    with serving(create_app(settings), port=port) as address:
        ledger, remote = Run(tmp_path / "a", address).launch()
        remote.__enter__()
        first = remote.lease()
    assert remote.lease() is None and remote.has_more()
    remote.commit(first, ["ab" * 16], one_pair())
    remote.mark_done(first)
    with serving(create_app(settings), port=port):
        until(lambda: statistics.crawl_counts(database).done == 1)
        remote.__exit__()
    ledger.close()


def test_a_finished_shard_that_became_anothers_meanwhile_is_named(
    url, database, fill, tmp_path, caplog
):
    fill(1)
    clock = Clock()
    app = create_app(TrackerSettings(database=url, limits=ANY, fresh=0), clock=clock)
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        ledger, remote = run.launch()
        remote.__enter__()
        first = remote.lease()
        remote.commit(first, ["ab" * 16], one_pair())
        remote._reporter.stop()  # killed before the tracker was told
        ledger.close()
        clock.now += 3600
        lease_store = app.state.service.leases
        other = lease_store.register("bob", WorkerKind.HYBRID)[1]
        assert {lease_store.lease(other).number, lease_store.lease(other).number} == {0, 1}
        ledger, again = run.launch()
        with again:
            again.mark_done(first)
        ledger.close()
    assert f"{first.id} stays in this dataset; another may have its pairs too." in caplog.text


def test_a_run_that_the_tracker_does_not_know_any_more_ends(app, database, tmp_path):
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        ledger, remote = run.launch()
        with pytest.raises(RunError, match="no longer knows this worker"), remote:
            first = remote.lease()
            remote.commit(first, ["ab" * 16], one_pair())
            remote.mark_done(first)
            until(lambda: statistics.crawl_counts(database).done == 1)
            app.state.service.leases.expel(1)
            while remote.has_more():
                remote.lease()
        assert ledger.counts().done == ledger.counts().total == 1
        ledger.close()
        ledger, again = run.launch()
        with again:
            assert again.lease()
        ledger.close()


def test_two_runs_never_keep_the_same_pair(app, database, tmp_path):
    class Judged:
        reason = None

        def __init__(self, uid):
            self.uid = uid
            self.image = self.candidate = self

    def kept(remote, shard):
        judged = remote.resolve_claims(shard, iter([Judged(uid) for uid in every]))
        return [each.uid for each in judged if not remote.has_pair(each.uid)]

    def finish(remote, shard, uids):
        account = Stats()
        for stage in Stage:
            account.entered[stage] = account.left[stage] = len(uids)
        done = statistics.crawl_counts(database).done
        remote.commit(shard, uids, account)
        remote.mark_done(shard)
        until(lambda: statistics.crawl_counts(database).done == done + 1)

    def interrupted(lost):
        raise KeyboardInterrupt

    every = [f"{n:032x}" for n in range(200)]
    with serving(app) as address:
        runs = [Run(tmp_path / name, address) for name in "ab"]
        (first, ann), (second, bob) = (run.launch() for run in runs)
        with ann, bob:
            shards = ann.lease(), bob.lease()
            assert kept(ann, shards[0]) == kept(bob, shards[1]) == every
            finish(ann, shards[0], every[:150])
            third = ann.lease()
            finish(bob, shards[1], every)
            with pytest.raises(KeyboardInterrupt):
                bob.withdraw_claimed(interrupted)
            assert kept(ann, third) == []
            finish(ann, third, [])
        first.close()
        second.close()
        second, again = runs[1].launch()
        told = []
        with again:
            again.withdraw_claimed(told.append)
            again.withdraw_claimed(told.append)
        second.close()
    assert told == [set(every[:150]), set()]
    assert statistics.crawl_counts(database).pairs == 200


def test_storage_that_is_away_costs_no_parcel_and_one_that_never_comes_is_told(
    app, database, tmp_path
):
    clock = Clock()
    deliver_all(app, "s3://parcels/a.tar")

    def errors():
        return [row["error"] for row in statistics.export_shards(database) if row["error"]]

    with serving(app) as address:
        ledger, remote = Run(tmp_path / "a", address, "gpu").launch(clock=clock)
        with remote:
            first, second = remote.lease(), remote.lease()
            for shard in (first, second):
                remote.release(shard, "s3 does not answer")
                assert remote.lease() is None and remote.has_more()
            until(lambda: statistics.crawl_counts(database).scraped == 6)
            clock.now += 61
            assert remote.lease() == first
            remote.commit(first, [], Stats())  # it answers again
            remote.mark_done(first)
            for waited in (0, 300, 301):
                clock.now += waited + 61
                assert errors() == []
                remote.release(remote.lease(), "s3 does not answer")
            until(errors)
            clock.now += 61
            remote.release(remote.lease(), "s3 does not answer")
        ledger.close()
    counts = statistics.crawl_counts(database)
    assert (counts.scraped, counts.done, counts.todo) == (5, 1, 0)
    assert errors() == ["s3 does not answer"]


@pytest.mark.parametrize(
    ("id", "half"),
    [("../../../home/evil", 0), ("/evil", 0), (".evil", 0), ("-evil", 0), ("a\nb", 0), ("a", 7)],
)
def test_a_shard_that_would_be_a_file_elsewhere_is_refused(url, database, tmp_path, id, half):
    admin.add_wats(database, [Shard(id=id, url="https://x/a.wat.gz", half=half)])
    with serving(create_app(TrackerSettings(database=url, limits=ANY))) as address:
        ledger, remote = Run(tmp_path / "a", address).launch()
        with remote, pytest.raises(RunError, match="cannot be trusted"):
            remote.lease()
        ledger.close()


def test_parcels_are_taken_from_where_the_tracker_wants_them_and_nowhere_else(app, tmp_path):
    with serving(app) as address:
        deliver_all(app, "s3://parcels/a.tar")
        run = Run(tmp_path / "a", address, "gpu")
        for _ in range(2):  # as a newcomer, and as one who comes back
            ledger, remote = run.launch()
            with remote:
                assert remote.get_parcel(remote.lease())["url"] == "s3://parcels/a.tar"
            ledger.close()


@pytest.mark.parametrize(
    "where", ["file:///home/ann/thesis.odt", "s3://parcels/../b/a.tar", "s3://parcels-of-b/a.tar"]
)
def test_a_parcel_that_is_elsewhere_is_refused(app, tmp_path, where):
    with serving(app) as address:
        deliver_all(app, where)
        ledger, remote = Run(tmp_path / "a", address, "gpu").launch()
        with remote, pytest.raises(RunError, match="cannot be trusted"):
            remote.lease()
        ledger.close()


def test_a_secret_that_an_earlier_version_kept_beside_the_dataset_is_moved(app, tmp_path):
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        for _ in range(2):
            ledger, remote = run.launch()
            with remote:
                secret = secret_path(run.folder / "tracker", "secret")
                joined = secret.read_text()
            ledger.close()
            path = run.folder / "tracker.json"
            told = json.loads(path.read_text())
            assert "secret" not in told
            path.write_text(json.dumps(told | {"secret": joined}))
            secret.unlink()
        ledger, remote = run.launch()
        with remote:
            assert secret.read_text() == joined and secret.stat().st_mode & 0o077 == 0
        assert joined not in path.read_text()
        ledger.close()


def test_the_folder_of_another_tracker_is_refused(app, tmp_path):
    before = set(threading.enumerate())
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        ledger, remote = run.launch()
        with remote:
            pass
        secret = secret_path(run.folder / "tracker", "secret")
        assert secret.read_text() and secret.stat().st_mode & 0o077 == 0
        assert secret.read_text() not in (run.folder / "tracker.json").read_text()
        ledger.close()
        run.address = "http://127.0.0.1:9"
        ledger, remote = run.launch()
        with pytest.raises(ConfigError, match="choose another"), remote:
            pass
        ledger.close()
    mine = set(threading.enumerate()) - before  # servers of other tests may leave some for a while
    assert len([each for each in mine if "AnyIO" not in each.name]) < 10
