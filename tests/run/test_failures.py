"""Failures of machines use up no attempt of a shard, and many in a row end the run."""

import errno

import pytest

from cahlib.core.errors import (
    ConfigError,
    MachineFault,
    Postponed,
    RunError,
    ShardError,
    describe_machine_fault,
)
from cahlib.core.records import Shard
from cahlib.run.failures import FailureHandler

ONE, OTHER = (Shard(id=name, url="http://crawl.example/wat.gz", half=0) for name in ("a-0", "b-0"))


class Ledger:
    def __init__(self):
        self.heard = []

    def release(self, shard, error):
        self.heard.append(("back", shard.id))

    def fail(self, shard, error, *, attempts):
        self.heard.append(("failed", shard.id, attempts, error))


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def failures(ledger, tmp_path):
    return FailureHandler(ledger, tmp_path, attempts=3)


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.ENOSPC, "x"), "its disk is full"),
        (chained(RunError("No space is left"), OSError(errno.ENOSPC, "x")), "its disk is full"),
        (OSError(errno.EMFILE, "x"), "no more open files"),
        (chained(ShardError("cannot be fetched"), OSError(errno.ENOBUFS, "x")), "no more sockets"),
        (OSError(errno.EIO, "x"), "its disk fails"),
        (MemoryError(), "its memory is exhausted"),
        (OSError(errno.ENOMEM, "x"), "its memory is exhausted"),
        (RuntimeError("can't start new thread"), "cannot start more threads"),
        (ModuleNotFoundError("No module named 'aiohttp'"), "installation is damaged"),
        (ConnectionResetError(errno.ECONNRESET, "x"), ""),
        (ShardError("its WAT is damaged"), ""),
        (FileNotFoundError(errno.ENOENT, "x"), ""),
        (ValueError("x"), ""),
    ],
)
def test_what_a_machine_fails_at_is_told_from_what_is_the_shards_fault(error, fault):
    assert fault in describe_machine_fault(error) and bool(fault) == bool(
        describe_machine_fault(error)
    )


def test_a_shard_is_not_blamed_for_machines_but_three_cannot_all_be_wrong(ledger, failures):
    for _ in range(3):
        failures.failed(ONE, MachineFault("its disk is full"), slots=8)
    assert ledger.heard == [("back", "a-0")] * 3
    failures.failed(OTHER, ConnectionError(), slots=8)
    failures.failed(ONE, MachineFault("its disk is full"), slots=8)
    assert ledger.heard[-1] == ("failed", "a-0", 3, "its disk is full")
    failures.scraped(ONE)
    failures.failed(ONE, MachineFault("its disk is full"), slots=8)
    assert ledger.heard[-1] == ("back", "a-0")


def test_where_all_machines_fail_the_run_ends_and_says_why(ledger, failures):
    for number in range(8):
        failures.failed(Shard(id=f"s-{number}", url="u", half=0), MemoryError(), slots=2)
    failures.scraped(ONE)  # one works
    with pytest.raises(RunError, match="the machines fail: MemoryError. Fix that"):
        for number in range(9):
            failures.failed(Shard(id=f"t-{number}", url="u", half=0), MemoryError(), slots=2)
    assert not any("failed" in each for each in ledger.heard)


def test_the_network_and_bugs_are_told_as_before_and_a_full_disk_here_ends_it(ledger, failures):
    failures.failed(ONE, Postponed("no network for 60 minutes"))
    failures.failed(ONE, ShardError("its WAT is damaged"))
    failures.failed(ONE, ZeroDivisionError("a bug"))
    assert ledger.heard[0] == ("back", "a-0") and ledger.heard[1][3] == "its WAT is damaged"
    assert ledger.heard[2][3].startswith("ZeroDivisionError: a bug")
    with pytest.raises(RunError, match="No space is left"):
        failures.failed(ONE, OSError(errno.ENOSPC, "No space left on device"))
    assert not issubclass(MachineFault, ConfigError | RunError)
