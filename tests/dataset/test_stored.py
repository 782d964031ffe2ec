"""A dataset that an earlier cahlib made is read, verified, purged and continued.

`tests/data/dataset-0.1.tar.xz` is the first half of the crawl below, made in November 2026 by a
cahlib whose settings and modules had other names. It holds for as long as the demo's model stays.
"""

import json
import tarfile
from pathlib import Path

import pytest

from cahlib.commands.cli import main
from cahlib.core.config import FORMER_NAMES, replace_settings
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.write.shard_writer import read_uids
from cahlib.demo.web import Answer
from cahlib.run.pipeline import run
from tests.world import small

STORED = Path(__file__).parent.parent / "data" / "dataset-0.1.tar.xz"
#: Where its crawl and its images were; the first is part of a shard's id, the second of a job.
PORT = 20117


class Harbour(small.Pictures):
    """The web that it was made of."""

    def answer(self, request):
        if request.url.endswith("/00000.warc.wat.gz"):
            return Answer(body=small.file(0, 4))
        return super().answer(request)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    return Path("dataset")


def uids(folder):
    return {each.shard.half: read_uids(folder, each) for each in read_manifests(folder)}


def test_it_is_of_a_time_of_other_names(stored):
    assert FORMER_NAMES.keys() <= json.loads((stored / "run" / "job.json").read_text()).keys()


def test_it_is_verified_and_shown(stored, capsys):
    assert main(["verify", str(stored)]) == 0
    assert main(["inspect", "--json", str(stored)]) == 0
    shown = capsys.readouterr().out
    assert "Every file is whole" in shown and json.loads(shown[shown.index("{") :])["pairs"] == 4


def test_it_is_purged(stored, tmp_path):
    gone, *others = uids(stored)[0]
    (tmp_path / "uids.txt").write_text(f"{gone}\n")
    assert main(["purge", str(stored), "--uids", "uids.txt"]) == 0
    assert uids(stored)[0] == others and list(verify(stored)) == []


def test_it_is_continued(stored):
    before = uids(stored)[0]
    with Harbour(port=PORT) as web:
        job = small.job(Path("replaced"), stored, web)
        job = replace_settings(job, crawl=f"http://{web.address}/00000.warc.wat.gz")
        result = run(job, scraping=small.scraping)
    assert (result.shards.done, result.shards.total, result.faults) == (2, 2, ())
    after = uids(stored)
    assert after[0] == before and len(after[1]) == 4 and list(verify(stored)) == []
    assert not FORMER_NAMES.keys() & json.loads((stored / "run" / "job.json").read_text()).keys()
