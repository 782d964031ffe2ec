"""A machine that is gone left finished shards at a URL: another one goes on after them."""

from pathlib import Path

import pytest

from cahlib.config import Job, replace
from cahlib.curate import seal, upload
from cahlib.curate.verify import verify
from cahlib.errors import ConfigError
from cahlib.takeover import take_over
from cahlib.tracker.store import Ledger
from tests.world import judged as world


@pytest.fixture
def lost(tmp_path):
    """The URL of two shards that a lost machine brought there."""
    url = (tmp_path / "drive" / "dataset").as_uri()
    for number in (0, 1):
        sealed = world.write(tmp_path / "lost", first=30 * number, shard=f"s-{number}")
        upload.upload(sealed, tmp_path / "lost", url)
    return url


@pytest.fixture
def job(lost, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    return replace(
        Job(), output=lost, threshold=world.RECIPE.threshold, forms=",".join(world.RECIPE.forms)
    )


def test_what_is_at_the_url_is_done_and_not_done_again(job, lost):
    ledger = Ledger(Path("ledger.sqlite"))
    shards = [world.parcel(f"s-{n}", images=1).shard for n in range(3)]
    ledger.add(shards)
    assert take_over(job, ledger) == 2
    assert take_over(job, ledger) == 0
    assert (ledger.counts().done, ledger.counts().todo) == (2, 1)
    assert ledger.lease() == shards[2] and ledger.lease() is None
    assert ledger.tally() == sum((each.tally for each in seal.seals(lost)), type(ledger.tally())())
    there = [each for each in world.some(30)[0] if each.reason is None]
    assert there and all(ledger.seen(each.image.candidate.uid) for each in there)
    assert {each.place for each in seal.seals(job.output.folder)} == {lost}
    assert list(verify(job.output.folder)) == [] == list(verify(lost))
    ledger.close()


def test_another_jobs_dataset_is_refused(job):
    ledger = Ledger(Path("ledger.sqlite"))
    with pytest.raises(ConfigError, match="another threshold or other forms"):
        take_over(replace(job, threshold=0.9), ledger)
    assert ledger.counts().total == 0
    assert take_over(replace(job, output="dataset"), ledger) == 0
    ledger.close()
