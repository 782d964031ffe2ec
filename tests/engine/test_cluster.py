"""The engine on a Dask cluster of anybody's: here on loopback, for nothing of it needs hosts."""

import logging
import subprocess
import sys
import threading

import pytest
from distributed import LocalCluster
from distributed.scheduler import DEFAULT_EXTENSIONS

from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError, MachineFault, RunError, ShardError
from cahlib.engine.cluster import ClusterAddress, connect
from cahlib.engine.remote import RemoteEngine, remote_engine
from cahlib.run.scrapers import open_scrapers as opened
from tests.world import jobs


def cluster(*, workers=1, threads=2, **settings):
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        **settings,
    )


def within(**settings):
    """One whose workers are threads of this process, which unpickles nothing.

    So they cannot be given plugins.
    """
    extensions = {name: each for name, each in DEFAULT_EXTENSIONS.items() if name != "shuffle"}
    return cluster(
        processes=False,
        protocol="tcp://",
        resources={"slot": 1},
        scheduler_kwargs={"extensions": extensions},
        **settings,
    )


@pytest.mark.parametrize("staging", [False, True])
def test_any_dask_cluster_serves(tmp_path, staging):
    with cluster() as theirs:
        reach = ClusterAddress(
            address=theirs.scheduler_address,
            parcel_folder=str(tmp_path / "away"),
            staging=(tmp_path / "shared").as_uri() if staging else "",
        )
        (tmp_path / "shared").mkdir()
        with remote_engine(reach, tmp_path / "home") as scrapers:
            scrapers.submit(
                "parcel", jobs.write_parcel, 3000, "", scrapers.folder, limit=jobs.LIMIT
            )
            _, parcel = scrapers.take(timeout=jobs.LIMIT)
            assert parcel.path.stat().st_size == 3000
            assert scrapers.slots == 1
    assert not [*(tmp_path / "away").iterdir(), *(tmp_path / "shared").iterdir()]


@pytest.mark.parametrize("staging", [False, True])
def test_runs_on_one_cluster_take_nothing_of_each_others(tmp_path, staging):
    def engine(name):
        shared = (tmp_path / "shared").as_uri() if staging else ""
        job = replace_settings(
            Job(), output=str(tmp_path / name), engine=theirs.scheduler_address, staging=shared
        )
        return opened(job, stop=threading.Event())

    begun = [tmp_path / "begun by a", tmp_path / "begun by b"]
    with cluster() as theirs:
        with engine("a") as (a, there), engine("b") as (b, elsewhere):
            for scrapers, folder in zip((a, b), begun, strict=True):
                folder.mkdir()
                scrapers.submit("shard", jobs.note_and_wait, folder, limit=jobs.LIMIT)
            for folder in begun:
                (folder / "go").touch()  # of both: either may be the first at the worker
            for scrapers in (a, b):
                assert scrapers.take(timeout=jobs.LIMIT) == ("shard", "done")
            for scrapers, parcels in ((a, there), (b, elsewhere)):
                scrapers.submit("parcel", jobs.write_parcel, 3000, "", parcels, limit=jobs.LIMIT)
                assert scrapers.take(timeout=jobs.LIMIT)[1].path.stat().st_size == 3000
                parcels.rmdir()  # it is empty again
        assert [(folder / "1").exists() for folder in begun] == [True, True]
        assert there != elsewhere
        with engine("a") as (_, again):
            assert again == there  # what an earlier launch left is found


def test_workers_that_could_not_serve_files_are_refused(tmp_path):
    before = {*threading.enumerate()}
    with cluster(threads=1) as theirs:
        with (
            pytest.raises(ConfigError, match="--nthreads 2"),
            remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path),
        ):
            pass
    begun = {*threading.enumerate()} - before
    assert not [thread for thread in begun if thread.name == "keeper"]


WITHOUT = """
import sys
sys.modules["cahlib"] = None
from distributed.cli.dask_worker import main
main()
"""


def test_a_cluster_without_workers_gets_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("cahlib.run.scrapers._WORKERS", 0.5)
    with within(workers=0) as theirs:
        job = replace_settings(Job(), output=str(tmp_path), engine=theirs.scheduler_address)
        with (
            pytest.raises(RunError, match="has no workers; start some that can import cahlib"),
            opened(job, stop=threading.Event()),
        ):
            pass


def test_a_cluster_whose_workers_lack_cahlib_gets_a_sentence(tmp_path):
    """Earns its second: only another process can be without what this one has."""
    with within(workers=0) as theirs:
        line = [sys.executable, "-c", WITHOUT, theirs.scheduler_address]
        with subprocess.Popen(
            [*line, "--nthreads=2", "--no-nanny", "--no-dashboard"], stderr=subprocess.DEVNULL
        ) as worker:
            try:
                theirs.wait_for_workers(1, timeout=jobs.LIMIT)
                with (
                    pytest.raises(ConfigError, match="workers that cannot import cahlib"),
                    remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path),
                ):
                    pass
            finally:
                worker.kill()


def test_a_worker_that_could_not_serve_files_ends_the_run_when_it_joins(tmp_path):
    with (
        within() as theirs,
        remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path) as scrapers,
    ):
        [fit] = theirs.worker_spec.values()
        theirs.worker_spec["thin"] = {**fit, "options": {**fit["options"], "nthreads": 1}}
        theirs.sync(theirs._correct_state)
        with pytest.raises(ConfigError, match="--nthreads 2"):
            jobs.until(lambda: scrapers.take(timeout=0.1) is not None)


def test_a_machine_that_fails_is_given_no_more_jobs_and_others_do_them(tmp_path):
    (tmp_path / "full").write_text("127.0.0.1")
    with (
        within() as theirs,
        remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path) as scrapers,
    ):
        joined(theirs, "127.0.0.2")
        jobs.until(lambda: scrapers.slots == 2)
        failed, done = 0, set()
        for number in range(6):
            scrapers.submit(f"job{number}", jobs.use_disk, tmp_path, limit=jobs.LIMIT)
        while len(done) < 6:
            key, result = scrapers.take(timeout=jobs.LIMIT)
            if isinstance(result, MachineFault):
                assert str(result).startswith("127.0.0.1: its disk is full (")
                failed += 1
                scrapers.submit(key, jobs.use_disk, tmp_path, limit=jobs.LIMIT)
            else:
                assert result == "127.0.0.2"
                done.add(key)
        assert 1 <= failed <= 6  # those that waited there are refused, and none comes again
        jobs.until(lambda: scrapers.slots == 1)
        jobs.until(lambda: [bool(n.fault) for n in scrapers.nodes()].count(True) == 1)
        [ill] = [each for each in scrapers.nodes() if each.fault]
        assert ill.host == "127.0.0.1" and ill.slots == 0


def joined(theirs, name):
    """One more worker of a cluster, on an address of its own."""
    one = theirs.worker_spec[0]
    theirs.worker_spec[name] = {**one, "options": {**one["options"], "host": name}}
    theirs.sync(theirs._correct_state)


def test_jobs_are_held_back_for_a_worker_that_comes_later(tmp_path):
    folders = [tmp_path / str(n) for n in range(3)]
    with (
        within() as theirs,
        remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path) as scrapers,
    ):
        for folder in folders:
            folder.mkdir()
            scrapers.submit(folder.name, jobs.note_and_wait, folder, limit=jobs.LIMIT)
        jobs.wait_for(folders[0] / "1")
        joined(theirs, "127.0.0.2")
        jobs.wait_for(folders[1] / "1")  # though the first one has not ended
        assert not (folders[2] / "1").exists()
        (folders[0] / "go").touch()
        assert scrapers.take(timeout=jobs.LIMIT) == ("0", "done")
        jobs.wait_for(folders[2] / "1")
        for folder in folders:
            (folder / "go").touch()
        assert {scrapers.take(timeout=jobs.LIMIT) for _ in "12"} == {("1", "done"), ("2", "done")}
    assert not [folder for folder in folders if (folder / "2").exists()]


def test_a_job_that_dask_put_behind_another_one_goes_to_a_worker_that_comes_later(tmp_path):
    folders = [tmp_path / str(n) for n in range(2)]
    with (
        within() as theirs,
        remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path) as scrapers,
    ):
        joined(theirs, "127.0.0.2")
        jobs.until(lambda: scrapers.slots == 2)
        for folder in folders:
            folder.mkdir()
            scrapers.submit(folder.name, jobs.note_and_wait, folder, limit=jobs.LIMIT)
        for folder in folders:
            jobs.wait_for(folder / "1")
        jobs.until(lambda: all(job.worker for job in scrapers._jobs.values()))  # it has looked
        assigned = scrapers._client.processing()
        [other] = [address for address in assigned if "127.0.0.2" in address]
        [moved] = assigned[other]
        gone = {"address": other, "stimulus_id": "test", "close": False}
        theirs.sync(theirs.scheduler.remove_worker, **gone)
        jobs.until(lambda: sorted(map(len, scrapers._client.processing().values())) == [2])
        joined(theirs, "127.0.0.3")
        jobs.wait_for(tmp_path / moved / "2")
        for folder in folders:
            (folder / "go").touch()
        assert {scrapers.take(timeout=jobs.LIMIT) for _ in "01"} == {("0", "done"), ("1", "done")}


@pytest.mark.parametrize("again", [False, True])
def test_the_parcel_of_a_job_that_outlives_its_driver_goes_to_the_next_or_away(tmp_path, again):
    away = tmp_path / "away"
    given = ("parcel", jobs.wait_and_write_parcel, tmp_path, away)
    with within() as theirs:
        address = ClusterAddress(address=theirs.scheduler_address, parcel_folder=str(away))
        tasks = theirs.workers[0].state.tasks
        with remote_engine(address, tmp_path / "home") as first:
            first.submit(*given, limit=jobs.LIMIT)
            jobs.wait_for(tmp_path / "1")
        jobs.until(lambda: [each.state for each in list(tasks.values())] == ["cancelled"])
        with remote_engine(address, tmp_path / "home") as second:
            if again:
                second.submit(*given, limit=jobs.LIMIT)
                jobs.until(lambda: [each.state for each in list(tasks.values())] == ["executing"])
            (tmp_path / "go").touch()
            if again:
                assert second.take(timeout=jobs.LIMIT)[1].path.stat().st_size == 3000
            jobs.until(lambda: not tasks)
    assert away.exists() and not list(away.iterdir())


def test_a_job_that_is_given_again_at_once_is_done_again(tmp_path):
    told = [tmp_path / f"{number}" for number in range(10)]
    with (
        within() as theirs,
        remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path) as scrapers,
    ):
        for path in told:
            scrapers.submit("same", jobs.touch_and_fail, path, limit=jobs.LIMIT)
            assert isinstance(scrapers.take(timeout=jobs.LIMIT)[1], ShardError)
    assert all(path.exists() for path in told)


def test_where_every_machine_fails_the_run_ends_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("cahlib.engine.remote._REPAIR_TIMEOUT", 0.5)
    (tmp_path / "full").write_text("127.0.0.1")
    with (
        within() as theirs,
        remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path) as scrapers,
    ):
        scrapers.submit("job", jobs.use_disk, tmp_path, limit=jobs.LIMIT)
        assert isinstance(scrapers.take(timeout=jobs.LIMIT)[1], MachineFault)
        scrapers.submit("job", jobs.use_disk, tmp_path, limit=jobs.LIMIT)
        with pytest.raises(
            RunError, match="all machines of tcp.* fail: 127.0.0.1: its disk is ful"
        ):
            jobs.until(lambda: scrapers.take(timeout=0.1) is not None)


def test_a_job_that_is_submitted_while_the_cluster_is_away_is_sent_later(tmp_path):
    clients, back = [], threading.Event()

    def connected(reach):
        if clients:
            back.wait(jobs.LIMIT)
        clients.append(connect(reach, jobs.LIMIT))
        return clients[-1]

    with cluster() as theirs:
        address = ClusterAddress(address=theirs.scheduler_address)
        scrapers = RemoteEngine(address, tmp_path, connected)
        try:
            clients[0].close()  # as Dask does when it gives up to connect again
            scrapers.submit("later", jobs.double, 21, limit=jobs.LIMIT)
            assert len(scrapers) == 1 and len(clients) == 1
            back.set()
            assert scrapers.take(timeout=jobs.LIMIT) == ("later", 42)
        finally:
            back.set()
            scrapers.close()


def test_a_question_on_its_way_while_the_client_closes_ends_nothing(tmp_path):
    clients = []

    def connected(reach):
        clients.append(connect(reach, jobs.LIMIT))
        return clients[-1]

    with within() as theirs:
        address = ClusterAddress(address=theirs.scheduler_address)
        scrapers = RemoteEngine(address, tmp_path, connected)
        try:
            clients[0].sync(clients[0].rpc.close)  # as a client begins to close
            with pytest.raises(RunError, match="does not answer"):
                scrapers.nodes()
            assert scrapers.await_nodes(["any"], timeout=0) == {"any"}
            scrapers.submit("double", jobs.double, 21, limit=jobs.LIMIT)
            clients[0].close()
            assert scrapers.take(timeout=jobs.LIMIT) == ("double", 42) and len(clients) == 2
        finally:
            scrapers.close()


def test_what_is_finished_is_taken_before_an_engine_that_was_given_up_says_so(tmp_path):
    with (
        within() as theirs,
        remote_engine(ClusterAddress(address=theirs.scheduler_address), tmp_path) as scrapers,
    ):
        scrapers.submit("double", jobs.double, 21, limit=jobs.LIMIT)
        scrapers.drain(timeout=jobs.LIMIT)
        jobs.until(lambda: not scrapers._finished.empty())
        scrapers.fail(RunError("no server is left."))
        assert scrapers.take(timeout=jobs.LIMIT) == ("double", 42)
        with pytest.raises(RunError, match="no server is left"):
            scrapers.take(timeout=0.1)


def test_a_cluster_that_goes_while_it_is_asked_for_the_first_time_is_named(tmp_path):
    with within(workers=0) as there:

        def connect_and_lose(address):
            client = connect(address, jobs.LIMIT)
            client.close()
            return client

        address = ClusterAddress(address=there.scheduler_address)
        with pytest.raises(RunError, match=f"{address.address} has stopped answering"):
            RemoteEngine(address, tmp_path, connect_and_lose)
