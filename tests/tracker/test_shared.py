"""A run's ledger that takes its shards from a tracker: nothing is lost when one goes away."""

from __future__ import annotations

import json
import threading

import pytest
from sqlalchemy import select

from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import Shard, Stage, Stats
from cahlib.core.secret_store import secret_path
from cahlib.dataset.write import shard_writer
from cahlib.ledger.client import Tracker
from cahlib.ledger.local import Ledger
from cahlib.ledger.remote import Shared
from cahlib.ledger.schema import again
from cahlib.run.run_directory import open_run_directory
from cahlib.tracker import admin, statistics
from cahlib.tracker.app import create
from cahlib.tracker.limits import Limits
from cahlib.tracker.models import Kind, Rules
from cahlib.tracker.service import Settings
from tests.world import judged
from tests.world.jobs import until
from tests.world.trackers import serving

from .conftest import Clock

ANY = Limits(address=0, worker=0, newcomers=0)


@pytest.fixture
def app(url, database, fill):
    fill(3)
    rules = Rules(lease=60, upload="s3://parcels")
    return create(Settings(database=url, rules=rules, limits=ANY, fresh=0))


def deliver_all(app, where):
    """Somebody brings the parcels of all shards."""
    crowd = app.state.service.crowd
    cpu = crowd.register("carl", Kind.CPU)[1]
    while lease := crowd.lease(cpu):
        crowd.deliver(cpu, lease.number, {"url": where, "sha256": "0" * 64, "size": 5})


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

    def launch(self, **options):
        ledger = Ledger(self.folder / "ledger.sqlite")
        ledger.recover()
        quick = {"often": (0.05, 0.05)} | options
        tracker = Tracker(self.address)
        path = self.folder / "tracker.json"
        return ledger, Shared(ledger, tracker, path, who=("ann", self.kind), **quick)


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
        ) as shared:
            assert identity.read_text() == secret
            first = shared.lease()
            shared.seal(first, [], one_pair())
            shared.done(first)
        with (
            pytest.raises(ConfigError, match="that job's: threshold"),
            open_run_directory(job, role="hybrid", stop=threading.Event()),
        ):
            pass


def test_what_is_done_is_told_and_what_is_not_is_given_back(app, database, tmp_path):
    with serving(app) as address:
        ledger, shared = Run(tmp_path / "a", address).launch()
        with shared:
            first, second, third = (shared.lease() for _ in range(3))
            shared.seal(first, ["ab" * 16], one_pair())
            shared.done(first)
            shared.fail(second, "broken", attempts=3)
            until(lambda: statistics.counts(database).done == 1)
            assert shared.more() and third
        assert ledger.counts().done == ledger.counts().total == 1
        ledger.close()
        counts = statistics.counts(database)
        assert (counts.done, counts.pairs, counts.leased, counts.todo) == (1, 1, 0, 5)
        assert statistics.leaders(database)[0]["nickname"] == "ann"


def test_a_tracker_with_spot_checks_hears_how_similar_the_pairs_are(url, database, fill, tmp_path):
    fill(1)
    app = create(Settings(database=url, rules=Rules(verify=1), limits=ANY, fresh=0))
    folder = tmp_path / "dataset"
    with serving(app) as address:
        job = Job.from_values({"tracker": address, "nickname": "ann", "output": str(folder)})
        with open_run_directory(job, role="hybrid", stop=threading.Event()) as shared:
            shard = shared.lease()
            sealed = judged.write(folder, shard=shard.id)
            shared.seal(shard, shard_writer.read_uids(folder, sealed), sealed.stats)
            shared.done(shard)
            until(lambda: statistics.counts(database).done == 1)
    with database.read() as connection:
        said = connection.execute(select(again.c.scores)).scalar_one()
    known = shard_writer.read_similarities(folder, sealed)
    assert len(set(known.values())) > 5
    assert said == {uid: pytest.approx(known[uid], abs=1e-4) for uid in known}


def test_a_killed_run_goes_on_with_its_leases_and_tells_what_it_had_not_told(
    app, database, tmp_path
):
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        ledger, shared = run.launch()
        shared.__enter__()
        first, second = shared.lease(), shared.lease()
        shared.seal(first, ["ab" * 16], one_pair())
        # Killed between seal and done: the messenger stops, nothing is given back.
        shared._ended.set()
        ledger.close()
        ledger, again = run.launch()
        with again:
            assert again.in_state("sealed") == [first]
            assert again.lease() == second
            again.done(first)
            until(lambda: statistics.counts(database).done == 1)
            assert statistics.counts(database).leased == 1
        ledger.close()


def test_work_goes_on_while_the_tracker_is_away(url, database, fill, tmp_path):
    fill(3)
    settings = Settings(database=url, limits=ANY, fresh=0)
    with serving(create(settings)) as address:
        ledger, shared = Run(tmp_path / "a", address).launch()
        shared.__enter__()
        first = shared.lease()
    assert shared.lease() is None and shared.more()
    shared.seal(first, ["ab" * 16], one_pair())
    shared.done(first)
    port = int(address.rpartition(":")[2])
    with serving(create(settings), port=port) as address:
        until(lambda: statistics.counts(database).done == 1)
        shared.__exit__()
    ledger.close()


def test_a_finished_shard_that_became_anothers_meanwhile_is_named(
    url, database, fill, tmp_path, caplog
):
    fill(1)
    clock = Clock()
    app = create(Settings(database=url, limits=ANY, fresh=0), clock=clock)
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        ledger, shared = run.launch()
        shared.__enter__()
        first = shared.lease()
        shared.seal(first, ["ab" * 16], one_pair())
        shared._ended.set()  # killed before the tracker was told
        shared._messenger.join()
        ledger.close()
        clock.now += 3600
        crowd = app.state.service.crowd
        other = crowd.register("bob", Kind.HYBRID)[1]
        assert {crowd.lease(other).number, crowd.lease(other).number} == {0, 1}
        ledger, again = run.launch()
        with again:
            again.done(first)
        ledger.close()
    assert f"{first.id} stays in this dataset; another may have its pairs too." in caplog.text


def test_a_run_that_the_tracker_does_not_know_any_more_ends(app, database, tmp_path):
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        ledger, shared = run.launch()
        with pytest.raises(RunError, match="does not know this worker any more"), shared:
            first = shared.lease()
            shared.seal(first, ["ab" * 16], one_pair())
            shared.done(first)
            until(lambda: statistics.counts(database).done == 1)
            app.state.service.crowd.expel(1)
            while shared.more():
                shared.lease()
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

    def kept(shared, shard):
        judged = shared.ours(shard, iter([Judged(uid) for uid in every]))
        return [each.uid for each in judged if not shared.seen(each.uid)]

    def finish(shared, shard, uids):
        account = Stats()
        for stage in Stage:
            account.entered[stage] = account.left[stage] = len(uids)
        done = statistics.counts(database).done
        shared.seal(shard, uids, account)
        shared.done(shard)
        until(lambda: statistics.counts(database).done == done + 1)

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
                bob.leave_out(interrupted)
            assert kept(ann, third) == []
            finish(ann, third, [])
        first.close()
        second.close()
        second, again = runs[1].launch()
        told = []
        with again:
            again.leave_out(told.append)
            again.leave_out(told.append)
        second.close()
    assert told == [set(every[:150]), set()]
    assert statistics.counts(database).pairs == 200


def test_storage_that_is_away_costs_no_parcel_and_one_that_never_comes_is_told(
    app, database, tmp_path
):
    clock = Clock()
    deliver_all(app, "s3://parcels/a.tar")

    def errors():
        return [row["error"] for row in statistics.export(database) if row["error"]]

    with serving(app) as address:
        ledger, shared = Run(tmp_path / "a", address, "gpu").launch(clock=clock)
        with shared:
            first, second = shared.lease(), shared.lease()
            for shard in (first, second):
                shared.give_back(shard, "s3 does not answer")
                assert shared.lease() is None and shared.more()
            until(lambda: statistics.counts(database).scraped == 6)
            clock.now += 61
            assert shared.lease() == first
            shared.seal(first, [], Stats())  # it answers again
            shared.done(first)
            for waited in (0, 300, 301):
                clock.now += waited + 61
                assert errors() == []
                shared.give_back(shared.lease(), "s3 does not answer")
            until(errors)
            clock.now += 61
            shared.give_back(shared.lease(), "s3 does not answer")
        ledger.close()
    counts = statistics.counts(database)
    assert (counts.scraped, counts.done, counts.todo) == (5, 1, 0)
    assert errors() == ["s3 does not answer"]


@pytest.mark.parametrize(
    ("id", "half"),
    [("../../../home/evil", 0), ("/evil", 0), (".evil", 0), ("-evil", 0), ("a\nb", 0), ("a", 7)],
)
def test_a_shard_that_would_be_a_file_elsewhere_is_refused(url, database, tmp_path, id, half):
    admin.add(database, [Shard(id=id, url="https://x/a.wat.gz", half=half)])
    with serving(create(Settings(database=url, limits=ANY))) as address:
        ledger, shared = Run(tmp_path / "a", address).launch()
        with shared, pytest.raises(RunError, match="not to be trusted"):
            shared.lease()
        ledger.close()


def test_parcels_are_taken_from_where_the_tracker_wants_them_and_nowhere_else(app, tmp_path):
    with serving(app) as address:
        deliver_all(app, "s3://parcels/a.tar")
        run = Run(tmp_path / "a", address, "gpu")
        for _ in range(2):  # as a newcomer, and as one who comes back
            ledger, shared = run.launch()
            with shared:
                assert shared.parcel(shared.lease())["url"] == "s3://parcels/a.tar"
            ledger.close()


@pytest.mark.parametrize(
    "where", ["file:///home/ann/thesis.odt", "s3://parcels/../b/a.tar", "s3://parcels-of-b/a.tar"]
)
def test_a_parcel_that_is_elsewhere_is_refused(app, tmp_path, where):
    with serving(app) as address:
        deliver_all(app, where)
        ledger, shared = Run(tmp_path / "a", address, "gpu").launch()
        with shared, pytest.raises(RunError, match="not to be trusted"):
            shared.lease()
        ledger.close()


def test_a_secret_that_an_earlier_version_kept_beside_the_dataset_is_moved(app, tmp_path):
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        for _ in range(2):
            ledger, shared = run.launch()
            with shared:
                secret = secret_path(run.folder / "tracker", "secret")
                joined = secret.read_text()
            ledger.close()
            path = run.folder / "tracker.json"
            told = json.loads(path.read_text())
            assert "secret" not in told
            path.write_text(json.dumps(told | {"secret": joined}))
            secret.unlink()
        ledger, shared = run.launch()
        with shared:
            assert secret.read_text() == joined and secret.stat().st_mode & 0o077 == 0
        assert joined not in path.read_text()
        ledger.close()


def test_the_folder_of_another_tracker_is_refused(app, tmp_path):
    before = set(threading.enumerate())
    with serving(app) as address:
        run = Run(tmp_path / "a", address)
        ledger, shared = run.launch()
        with shared:
            pass
        secret = secret_path(run.folder / "tracker", "secret")
        assert secret.read_text() and secret.stat().st_mode & 0o077 == 0
        assert secret.read_text() not in (run.folder / "tracker.json").read_text()
        ledger.close()
        run.address = "http://127.0.0.1:9"
        ledger, shared = run.launch()
        with pytest.raises(ConfigError, match="choose another"), shared:
            pass
        ledger.close()
    mine = set(threading.enumerate()) - before  # servers of other tests may leave some for a while
    assert len([each for each in mine if "AnyIO" not in each.name]) < 10
