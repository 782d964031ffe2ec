"""The ledger hands each shard out once, and forgets nothing."""

import os
import subprocess
import threading

import pytest

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason, Shard, Stage, Stats
from cahlib.ledger.local import LocalLedger


def shards(count: int) -> list[Shard]:
    return [Shard(id=f"s-{n}", url="/some.wat.gz", half=n % 2) for n in range(count)]


@pytest.fixture
def ledger(tmp_path):
    ledger = LocalLedger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def test_shards_are_leased_in_their_order_and_once(ledger):
    ledger.add(shards(3))
    ledger.add(shards(4))  # asked for more: the first three are known
    assert [ledger.lease() for _ in range(5)] == [*shards(4), None]


def test_twenty_threads_lease_each_shard_once(ledger):
    ledger.add(shards(200))
    taken: list[Shard] = []

    def work() -> None:
        while shard := ledger.lease():
            taken.append(shard)

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(s.id for s in taken) == sorted(s.id for s in shards(200))


def test_a_failed_shard_comes_back_after_the_others_until_its_attempts_are_used_up(ledger):
    bad, good = shards(2)
    ledger.add([bad, good])
    assert ledger.lease() == bad
    assert not ledger.fail(bad, "first", attempts=2)
    assert [ledger.lease(), ledger.lease()] == [good, bad]
    assert ledger.fail(bad, "second", attempts=2)
    assert ledger.lease() is None
    assert ledger.errors() == [(bad.id, "second")]
    assert (ledger.counts().failed, ledger.counts().leased) == (1, 1)


def test_a_new_launch_takes_back_what_was_leased_or_had_failed(ledger):
    first, second, third = shards(3)
    ledger.add([first, second, third])
    for _ in range(3):
        ledger.lease()
    ledger.fail(first, "no", attempts=1)
    ledger.commit(second, [], Stats())
    ledger.recover()
    assert [ledger.lease(), ledger.lease(), ledger.lease()] == [first, third, None]
    assert ledger.in_state("sealed") == [second]


def test_pairs_and_stats_of_committed_shards_are_known(ledger, tmp_path):
    first, second = shards(2)
    ledger.add([first, second])
    stats = Stats()
    stats.entered[Stage.JUDGE], stats.left[Stage.JUDGE] = 3, 2
    stats.dropped[DropReason.DISSIMILAR] = 1
    ledger.commit(first, ["0" * 32, "ab" * 16], stats)
    ledger.commit(second, ["1" * 32], stats)
    ledger.mark_done(first)
    assert ledger.has_pair("ab" * 16) and not ledger.has_pair("cd" * 16)
    assert ledger.stats() == stats + stats
    ledger.close()
    again = LocalLedger(tmp_path / "ledger.sqlite")
    counts = again.counts()
    assert (counts.done, counts.committed, counts.open) == (1, 1, 0)
    assert again.has_pair("1" * 32)
    again.close()


@pytest.mark.parametrize("name", ["ds?1", "p%20q", "a#b", "c&mode=ro", "d;e", "file:f?uri=true"])
def test_each_folder_has_a_ledger_of_its_own_whatever_its_name(tmp_path, name):
    path = tmp_path / name / "ledger.sqlite"
    path.parent.mkdir()
    LocalLedger(path).close()
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert [each for each in files if not each.name.startswith("ledger.sqlite-")] == [path]


def test_a_file_that_is_no_ledger_is_refused_with_a_sentence(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="is not a readable ledger"):
        LocalLedger(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_not_taken_for_another_file(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        with pytest.raises(RunError, match="No space is left"):
            LocalLedger(tmp_path / "ledger.sqlite")
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
