"""A backup is one moment of a tracker that runs, and brings it into any database."""

import threading

import pytest
from sqlalchemy import func, select

from cahlib.commands.cli import main
from cahlib.core.errors import ConfigError
from cahlib.core.records import Stats
from cahlib.ledger.database import Database
from cahlib.ledger.schema import pairs, shards
from cahlib.tracker import statistics
from cahlib.tracker.backup import backup, restore
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.models import ShardResult, TrackerRules, WorkerKind
from cahlib.tracker.schema import left_pairs, metadata, people


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request, tmp_path):
    """An empty database, of the same kind or of the other."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'other.sqlite'}"
    return request.getfixturevalue("postgres").create("other")


def work(lease_store, secret, until=lambda: False):
    while not until() and (lease := lease_store.lease(secret)):
        uids = (b"%016d" % lease.number, b"of all of them..")
        lease_store.complete(secret, lease.number, ShardResult(pairs=2, uids=uids, stats=Stats()))


def rows(database):
    with database.read() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for table in metadata.sorted_tables
        }


def test_what_is_restored_is_what_was_there_and_goes_on(
    lease_store, fill, database, other, tmp_path
):
    fill(3)
    cpu = lease_store.register("carl", WorkerKind.CPU, nickname_secret="his")[1]
    lease_store.deliver(
        cpu, lease_store.lease(cpu).number, {"url": "s3://a", "sha256": "0", "size": 1}
    )
    lease_store.fail(cpu, lease_store.lease(cpu).number, "broken: ü")
    work(
        lease_store,
        lease_store.register("ann", WorkerKind.HYBRID)[1],
        lambda: statistics.crawl_counts(database).done == 2,
    )
    path = tmp_path / "backup"
    count = backup(database, path)
    assert path.stat().st_mode & 0o077 == 0
    again = Database(other)
    assert restore(again, path) == count
    assert rows(again) == rows(database)
    fresh = LeaseStore(again, TrackerRules())
    work(fresh, fresh.register("bob", WorkerKind.HYBRID)[1])
    assert statistics.crawl_counts(again).done == 5
    with pytest.raises(ConfigError, match="restore into an empty one"):
        restore(again, path)
    again.close()


def test_a_backup_of_a_tracker_at_work_is_one_moment(lease_store, fill, database, tmp_path):
    fill(40)
    threads = [
        threading.Thread(
            target=work, args=(lease_store, lease_store.register(f"n{n}", WorkerKind.HYBRID)[1])
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    taken = 0
    while any(thread.is_alive() for thread in threads) or not taken:
        path = tmp_path / "backup"
        backup(database, path)
        place = tmp_path / f"{taken}.sqlite"
        again = Database(f"sqlite:///{place}")
        restore(again, path)
        with again.read() as connection:
            done = connection.execute(select(func.sum(people.c.done))).scalar() or 0
            made = connection.execute(select(func.sum(people.c.pairs))).scalar() or 0
            closed = select(func.count()).where(shards.c.state == "done")
            assert connection.execute(closed).scalar() == done
            assert connection.execute(select(func.count()).select_from(pairs)).scalar() == made
            left = connection.execute(select(func.count()).select_from(left_pairs)).scalar()
            assert left == max(done - 1, 0)
        again.close()
        taken += 1
    for thread in threads:
        thread.join()


def test_the_commands(url, database, lease_store, fill, tmp_path, capsys):
    fill(1)
    path, other = tmp_path / "b.gz", f"sqlite:///{tmp_path / 'c.sqlite'}"
    assert main(["tracker", "backup", str(path), "--database", url]) == 0
    assert main(["tracker", "restore", str(path), "--database", other]) == 0
    assert capsys.readouterr().out.count(" rows") == 2
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"x" * 100):
        path.write_bytes(broken)
        fresh = f"sqlite:///{tmp_path / 'd.sqlite'}"
        assert main(["tracker", "restore", str(path), "--database", fresh]) == 2
        assert "is not a complete backup" in capsys.readouterr().err
    path.write_bytes(whole)
    assert main(["tracker", "restore", str(path), "--database", fresh]) == 0
    assert main(["tracker", "restore", str(tmp_path / "no"), "--database", other]) == 2
