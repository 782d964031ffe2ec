"""Shards come to a Hugging Face repository in few commits, and are done when theirs is through."""

from dataclasses import replace

import msgspec
import pytest
from huggingface_hub import HfFileSystem

from cahlib.core.config import Job, Output
from cahlib.core.errors import ConfigError, RunError
from cahlib.dataset.checksummed_json import decode_checksummed
from cahlib.dataset.description import Description, commit_shards
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import encode_manifest, manifest_path, read_manifests
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.hub import COMMIT_INTERVAL
from cahlib.dataset.storage.upload import Uploader, check_destination, upload_pages, upload_shards
from tests.world import hub as world
from tests.world import judged

# huggingface_hub gives its own HTTP client the bytes of a file by a name that is to go
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

URL = "hf://datasets/ada/set/crawl"


@pytest.fixture
def there(monkeypatch):
    """A hub with one empty repository, where the real client is at home."""
    with world.client(monkeypatch, "ada/set") as there:
        yield there


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a dataset of that URL is made."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "crawl"


@pytest.fixture
def shards(folder):
    """Three shards of it."""
    return [judged.write(folder, 10, first=10 * n, shard=f"s-{n}") for n in range(3)]


class Clock:
    """A time that passes when it is told to."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def names(manifest):
    return {f"crawl/{path}" for path in (*manifest.files, manifest_path(manifest.shard.id))}


def uploads(clock, through):
    return Uploader(Output(output=URL), through.append, sleep=clock.sleep, clock=clock)


def test_shards_wait_for_each_other_and_are_done_when_their_commit_is_through(
    there, shards, folder
):
    clock, through = Clock(), []
    with uploads(clock, through) as bring:
        bring.add(shards[0])
        assert (through, there.commits) == ([], [])
        clock.now += COMMIT_INTERVAL
        bring.add(shards[1])
        assert through == shards[:2]
        bring.add(shards[2])
    assert through == shards
    assert [{*each} for each in there.commits] == [
        names(shards[0]) | names(shards[1]), names(shards[2]),
    ]  # fmt: skip
    assert {world.LARGE <= len(data) for data in there.repositories["ada/set"].values()} == {
        True, False,
    }  # fmt: skip
    assert list(verify(URL)) == [] and list(read_manifests(URL)) == shards


OURS = Description(settings={"threshold": 0.3}, digest=judged.SPEC.settings)


def described(there):
    """What the repository says of itself: at any commit the shards that it has."""
    held = there.repositories["ada/set"]
    said = decode_checksummed(held["crawl/dataset.json"], msgspec.json.Decoder(Description))
    assert {*said.committed} == {
        path.rpartition("/")[2].removesuffix(".json") for path in held if "/shards/" in path
    }
    return said


def test_the_description_is_true_at_every_commit(there, shards, folder, tmp_path):
    there.busy = [{"Retry-After": "300"}]
    commit_shards(folder, OURS, ["s-0", "s-1", "s-2"])
    clock, seen = Clock(), []

    def through(manifest):
        seen.append((manifest.shard.id, len(there.commits), described(there).committed))

    with Uploader(Output(output=URL), through, sleep=clock.sleep, clock=clock) as bring:
        bring.add(shards[0])
        clock.now += COMMIT_INTERVAL
        bring.add(shards[1])
        bring.add(shards[2])
    two, all_ = ("s-0", "s-1"), ("s-0", "s-1", "s-2")
    assert seen == [("s-0", 1, two), ("s-1", 1, two), ("s-2", 2, all_)]
    assert clock.slept == [301]
    other = judged.write(tmp_path / "other", 10, first=90, shard="s-9")  # by another machine
    commit_shards(tmp_path / "other", OURS, ["s-9"])
    upload_shards([other], tmp_path / "other", URL)
    assert described(there).committed == (*all_, "s-9")
    upload_shards([other], tmp_path / "other", URL)
    write_pages(folder, {})
    upload_pages(folder, URL)
    said = described(there)
    assert len(there.commits) == 4 and said.committed == (*all_, "s-9")
    assert {*said.pages} == {"report.html", "README.md", "images/README.md"}
    assert list(verify(URL)) == []


def test_a_shard_a_minute_is_a_commit_every_other_minute(there, shards, folder):
    clock, through = Clock(), []
    with uploads(clock, through) as bring:
        for minute in range(10):
            clock.now = minute * 60
            # another file each time, or there was nothing to commit
            (folder / manifest_path("s-0")).write_bytes(
                encode_manifest(replace(shards[0], started=float(minute)))
            )
            bring.add(shards[0])
    assert 4 <= len(there.commits) <= 5
    assert len(through) == 10


@pytest.mark.parametrize(
    ("headers", "slept"),
    [
        ({"Retry-After": "300"}, 301),
        ({"RateLimit": '"api";r=0;t=55'}, 56),
        ({}, 60),
    ],
)
def test_a_hub_that_is_busy_is_waited_for(there, shards, folder, headers, slept):
    there.busy = [headers] * 2
    clock, through = Clock(), []
    with uploads(clock, through) as bring:
        bring.add(shards[0])
    assert (clock.slept, through) == ([slept] * 2, shards[:1])


def test_what_is_not_through_is_brought_by_the_next_launch(there, shards, folder):
    there.busy = [{"Retry-After": "7000"}] * 2
    clock, through = Clock(), []
    with pytest.raises(RunError, match="429"), uploads(clock, through) as bring:
        bring.add(shards[0])
    assert (through, there.commits) == ([], [])
    there.busy = []
    with uploads(clock, through) as bring:
        bring.add(shards[0])
    assert through == shards[:1]


@pytest.mark.parametrize(
    ("error", "brought"), [(RunError("elsewhere"), True), (KeyboardInterrupt(), False)]
)
def test_the_rest_is_brought_whatever_ends_a_run(there, shards, folder, error, brought):
    through = []
    with pytest.raises(type(error)), uploads(Clock(), through) as bring:
        bring.add(shards[0])
        raise error
    assert bool(there.commits) == brought == bool(through)


def test_a_shard_that_is_there_is_not_sent_again(there, shards, folder):
    upload_shards(shards, folder, URL)
    there.log.clear()
    upload_shards(shards, folder, URL)
    assert len(there.commits) == 1
    assert not [each for each in there.log if "/commit/" in each or "/lfs/" in each]


def test_a_purge_is_one_commit_and_report_and_card_another(there, shards, folder):
    upload_shards(shards, folder, URL)
    (folder / "run").mkdir()
    Job(output=Output(output=URL)).store(folder / "run" / "job.json")
    gone = [each for each in judged.some(20)[0] if each.reason is None]
    listed = folder / "uids"
    listed.write_text("".join(f"{each.image.candidate.uid}\n" for each in gone))
    assert len(list(purge(folder, PurgeLists(uids=[str(listed)])))) == 2
    first, changed, pages = there.commits
    about = {"report.html", "README.md", "sizes.json", "nshards.txt"}
    assert {each.rpartition("/")[2] for each in pages} == about
    assert (
        f"crawl/{manifest_path('s-0')}" in changed
        and f"crawl/{manifest_path('s-2')}" not in changed
    )
    assert [each for each in changed if each.startswith("-crawl/images/s-")]
    assert list(verify(URL)) == list(verify(folder)) == []


def test_without_the_local_copy_the_manifests_lead_to_the_files(there, shards, folder):
    upload_shards(shards, folder, URL, keep_local=False)
    assert {path.parent.name for path in folder.rglob("*") if path.is_file()} == {"shards"}
    assert list(verify(folder)) == []


def test_a_file_that_the_repository_ignores_is_not_taken_for_there(there, shards, folder):
    there.ignored = ".tar"
    with pytest.raises(RunError, match=r"images/s-0.tar did not arrive intact"):
        upload_shards(shards, folder, URL, sleep=lambda seconds: None)


def test_a_repository_is_checked_without_a_commit(there, folder):
    check_destination(URL, folder)
    assert there.commits == []
    there.readonly = True
    with pytest.raises(ConfigError, match="403") as refused:
        check_destination(URL, folder)
    assert "hf_secret" not in str(refused.value)
    HfFileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match="there is no hf://datasets/ada/other, or not for your"):
        check_destination("hf://datasets/ada/other", folder)
