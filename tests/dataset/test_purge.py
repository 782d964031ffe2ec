"""What is purged is gone from every file, and what is left is as if it had never been there."""

import gzip
import json
import re
import shutil
from itertools import combinations

import pyarrow.parquet as pq
import pytest

from cahlib.commands.cli import main
from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.lock import lock_dataset
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.layout import FOLDERS, MANIFESTS
from cahlib.dataset.maintain.purge import CHANGES_FILE, PurgeLists, changed_shards, purge
from cahlib.dataset.maintain.rewrite import rewrite_shards
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifest, read_manifests
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage import upload
from cahlib.dataset.storage.upload import upload_shards
from cahlib.dataset.tar_index import TAR_INDEX_FILES
from cahlib.dataset.write import columns, formats, shard_writer
from cahlib.dataset.write.columns import OPTIONAL_COLUMNS, make_row
from cahlib.dataset.write.shard_writer import ScoredParcel, write_shard
from cahlib.run.pipeline import run
from tests.world import judged as world
from tests.world.crashes import before_each_renaming
from tests.world.judged import with_forms, write, write_anew, write_these
from tests.world.pictures import phash

FORMS = ("images", "embeddings", "tfrecords")
SOME = [forms for count in range(4) for forms in combinations(FORMS, count)]


def kept(count=30):
    return [each for each in world.some(count)[0] if each.reason is None]


def listed(path, *entries):
    path.write_text("".join(f"{each}\n" for each in entries))
    return [str(path)]


def files(folder):
    """What tells nothing of when it was made, nor of what was purged."""
    return {
        path.relative_to(folder): path.read_bytes()
        for each in set(FOLDERS) - {MANIFESTS, "outcomes"}
        for path in folder.glob(f"{each}/*")
        if path.relative_to(folder).as_posix() not in TAR_INDEX_FILES
    }


def lists(tmp_path, gone):
    """Lists that name these pairs, each by something else."""
    names = [
        ("hashes", lambda image: image.md5.upper()),
        ("hashes", lambda image: image.sha1),
        ("hashes", lambda image: image.sha256),
        ("looks", lambda image: phash(image.data)),
        ("urls", lambda image: image.candidate.url),
        ("uids", lambda image: image.candidate.uid),
    ]
    found = {"hashes": [], "looks": [], "urls": [], "uids": []}
    for (kind, name), pair in zip(names, gone, strict=True):
        found[kind].append(name(pair.image))
    named = {kind: listed(tmp_path / kind, *each) for kind, each in found.items()}
    return PurgeLists(**named, distance=0)


@pytest.mark.parametrize("forms", SOME, ids="-".join)
def test_what_is_left_is_as_if_it_had_never_been_there(tmp_path, forms):
    spec = with_forms(*forms)
    gone = kept()[1:13:2]
    write(tmp_path / "purged", spec=spec)
    write(tmp_path / "purged", first=1000, shard="s-1", spec=spec)
    write_pages(tmp_path / "purged", {})
    untouched = {p: p.stat().st_ino for p in (tmp_path / "purged").rglob("*s-1*")}
    (change,) = purge(tmp_path / "purged", lists(tmp_path, gone))
    assert (change.shard, change.lost, change.left) == ("s-0", {DropReason.PURGED: 6}, 9)
    assert {p: p.stat().st_ino for p in untouched} == untouched

    uids = {each.image.candidate.uid for each in gone}
    never = [each for each in world.some(30)[0] if each.image.candidate.uid not in uids]
    write_these(tmp_path / "never", never, spec=spec)
    write(tmp_path / "never", first=1000, shard="s-1", spec=spec)
    write_pages(tmp_path / "never", {})
    assert files(tmp_path / "purged") == files(tmp_path / "never")
    assert list(verify(tmp_path / "purged")) == []
    mine, other = (read_manifest(tmp_path / name, "s-0") for name in ("purged", "never"))
    assert mine.domains == other.domains and mine.rows == other.rows == 9
    assert mine.stats.dropped[DropReason.PURGED] == 6 and mine.stats.unaccounted(Stage.JUDGE) == 0
    assert mine.similarity == pytest.approx(other.similarity)
    assert sum(mine.kept.values()) == 9 and mine.dropped == other.dropped
    before, after = outcomes(tmp_path / "never"), outcomes(tmp_path / "purged")
    purged = [row for row in after if row["reason"] == "purged"]
    assert [{k: v for k, v in row.items() if v is not None} for row in purged] == [
        {"position": row["position"], "reason": "purged"} for row in purged
    ]
    fetched = [
        [r["uid"] for r in rows if r["uid"] and not r["ms"] == 30] for rows in (before, after)
    ]
    assert fetched[0] == fetched[1] and len(purged) == 6


def outcomes(folder):
    return pq.read_table(folder / "outcomes/s-0.parquet").to_pylist()


def test_links_that_were_no_pairs_are_purged_from_the_outcomes(tmp_path, capsys):
    write(tmp_path)
    dropped = [row for row in outcomes(tmp_path) if row["reason"] in ("timeout", "dissimilar")]
    urls = listed(tmp_path / "urls", dropped[0]["url"], dropped[-1]["url"])
    before = sorted(files(tmp_path).values())
    assert main(["purge", str(tmp_path), "--urls", *urls]) == 0
    assert "2 links of other candidates were removed from the outcomes." in capsys.readouterr().out
    assert sorted(files(tmp_path).values()) == before and list(verify(tmp_path)) == []
    left = {row["position"]: row for row in outcomes(tmp_path)}
    for row in (dropped[0], dropped[-1]):
        found = left[row["position"]]
        assert found["reason"] == row["reason"]
        assert all(found[name] is None for name in found.keys() - {"position", "reason"})
    assert sum(row["url"] is not None for row in left.values()) == len(left) - 2 - 3  # and minors
    assert main(["purge", str(tmp_path), "--urls", *urls]) == 0
    assert "Removed 0 pairs from 0 shards.\n" in capsys.readouterr().out


def test_a_pair_is_purged_by_the_url_that_it_was_redirected_to(tmp_path):
    made = world.placed(world.some(5)[0])
    scraped = world.parcel("s-0", images=5)
    moved = [
        each._replace(final_url="https://cdn.example/moved.jpg") if each.position == 0 else each
        for each in world.outcomes(scraped, made)
    ]
    scored = ScoredParcel(parcel=scraped, stats=world.stats_of(made), outcomes=moved)
    write_shard(tmp_path, made, scored, spec=world.SPEC, again=lambda _: None)
    urls = listed(tmp_path / "urls", "https://cdn.example/moved.jpg")
    (change,) = purge(tmp_path, PurgeLists(urls=urls))
    assert change.lost == {DropReason.PURGED: 1} and list(verify(tmp_path)) == []
    assert outcomes(tmp_path)[0]["reason"] == "purged"


def test_a_dataset_of_an_older_cahlib_is_sound_and_can_be_purged(tmp_path, monkeypatch):
    """Its table and samples lack a column, and have nulls where a text was not kept."""
    made = make_row
    with monkeypatch.context() as older:
        older_columns = [each for each in columns.ALL_COLUMNS if each[0] not in OPTIONAL_COLUMNS]
        older.setattr(columns, "ALL_COLUMNS", older_columns)
        older.setattr(formats, "fill_nulls", lambda row: row)

        def row(*args, **more):
            values = {**made(*args, **more), "raw_text": None}
            return {name: value for name, value in values.items() if name not in OPTIONAL_COLUMNS}

        older.setattr(shard_writer, "make_row", row)
        write_anew(tmp_path)
    assert list(verify(tmp_path)) == []
    (change,) = purge(tmp_path, lists(tmp_path, kept()[1:13:2]))
    assert change.left == 9 and list(verify(tmp_path)) == []
    table = pq.read_table(tmp_path / "metadata/metadata_s-0.parquet")
    assert {*world.SPEC.scores.values()} <= {*table.column_names}


def test_no_picture_of_what_is_purged_is_shown(tmp_path):
    write(tmp_path)
    shown = read_manifest(tmp_path, "s-0").gallery
    kept, dropped = ([each for each in shown if each.kept is want] for want in (True, False))
    by_uid = {each.image.candidate.uid: each.image for each in world.some(30)[0]}
    hashes = listed(tmp_path / "hashes", by_uid[kept[0].uid].sha256)
    looks = listed(tmp_path / "looks", phash(by_uid[dropped[0].uid].data))
    urls = listed(tmp_path / "urls", dropped[1].url)
    (change,) = purge(tmp_path, PurgeLists(hashes=hashes))
    assert change.lost == {DropReason.PURGED: 1}
    (change,) = purge(tmp_path, PurgeLists(looks=looks, distance=2, urls=urls))
    assert change.lost == {}  # they had not been kept
    left = read_manifest(tmp_path, "s-0").gallery
    assert left == tuple(each for each in shown if each not in (kept[0], *dropped[:2]))
    assert list(verify(tmp_path)) == []


def test_what_was_changed_is_told_but_not_what_it_was(tmp_path):
    write(tmp_path)
    shown = read_manifest(tmp_path, "s-0").gallery
    pair = next(each for each in shown if each.kept)
    assert len(list(purge(tmp_path, PurgeLists(uids=listed(tmp_path / "uids", pair.uid))))) == 1
    assert read_manifest(tmp_path, "s-0").gallery == tuple(each for each in shown if each != pair)
    (line,) = (tmp_path / CHANGES_FILE).read_text().splitlines()
    told = json.loads(line)
    assert (told["what"], told["shard"], told["lost"]) == ("purge", "s-0", {"purged": 1})
    for name in ("report.html", "README.md", CHANGES_FILE):
        text = (tmp_path / name).read_text()
        assert "purged" in text and pair.url not in text and pair.uid not in text


def test_a_second_time_nothing_is_left_to_do(tmp_path):
    write(tmp_path)
    uids = listed(tmp_path / "uids", *(each.image.candidate.uid for each in kept()[:3]))
    assert len(list(purge(tmp_path, PurgeLists(uids=uids)))) == 1
    before = files(tmp_path)
    assert list(purge(tmp_path, PurgeLists(uids=uids))) == []
    assert files(tmp_path) == before
    assert len((tmp_path / CHANGES_FILE).read_text().splitlines()) == 1


def test_pages_that_an_earlier_launch_did_not_come_to_are_made(tmp_path):
    write(tmp_path)
    shown = read_manifest(tmp_path, "s-0").gallery
    pair = next(each for each in shown if each.kept)
    write_pages(tmp_path, {})
    assert pair.jpeg in (tmp_path / "report.html").read_text()
    lists = PurgeLists(uids=listed(tmp_path / "uids", pair.uid))
    assert len(list(rewrite_shards(tmp_path, lists.rules()[0]))) == 1  # and is killed then
    assert list(purge(tmp_path, lists)) == []
    assert pair.jpeg not in (tmp_path / "report.html").read_text()
    assert "purged" in (tmp_path / "README.md").read_text()


def test_what_the_run_brought_to_a_url_is_purged_there_too(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "_PAUSES", ())
    here, there = tmp_path / "here", tmp_path / "there"
    write(here)
    write(here, first=1000, shard="s-1")
    remembered(here, there.as_uri())
    for manifest in read_manifests(here):
        upload_shards([manifest], here, there.as_uri())
    gone = listed(tmp_path / "uids", *(each.image.candidate.uid for each in kept()))
    there.rename(tmp_path / "away")
    there.touch()  # nothing can be brought below a file
    with pytest.raises(RunError, match="run the same command again"):
        list(purge(here, PurgeLists(uids=gone)))
    there.unlink()
    (tmp_path / "away").rename(there)
    assert list(purge(here, PurgeLists(uids=gone))) == []
    assert list(verify(there)) == list(verify(here)) == []
    assert files(there) == files(here)
    assert (there / "report.html").read_bytes() == (here / "report.html").read_bytes()
    assert [path.name for path in (there / "images").glob("*.tar")] == ["s-1.tar"]


def test_what_is_at_a_url_alone_is_copied_here_before(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    remembered(here, there.as_uri())
    upload_shards([write(here)], here, there.as_uri(), keep_local=False)
    gone = PurgeLists(uids=listed(tmp_path / "uids", *(e.image.candidate.uid for e in kept()[:3])))
    with pytest.raises(ConfigError, match="download them first"):
        list(purge(here, gone))
    shutil.copytree(there, here, dirs_exist_ok=True)
    (change,) = purge(here, gone)
    assert change.left == 12 and files(there) == files(here)
    assert list(verify(there)) == list(verify(here)) == []


def remembered(folder, url):
    """Have the dataset's job say that it was brought to a URL."""
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "job.json").write_text(
        json.dumps(replace_settings(Job(), output=url).values())
    )


def test_a_damaged_job_is_said_before_anything_is_changed(tmp_path):
    write(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.json").write_text("{")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="job.json is damaged"):
        list(
            purge(
                tmp_path, PurgeLists(uids=listed(tmp_path / "uids", kept()[0].image.candidate.uid))
            )
        )
    assert files(tmp_path) == before


def test_everything_can_be_purged(tmp_path):
    write(tmp_path)
    packed = tmp_path / "all.gz"
    packed.write_bytes(gzip.compress("\n".join(e.image.sha256 for e in kept()).encode()))
    (change,) = purge(tmp_path, PurgeLists(hashes=[str(packed)]))
    assert change.left == 0
    assert {path.parts[0] for path in files(tmp_path)} == {"optouts"}
    assert {row["reason"] for row in outcomes(tmp_path)} >= {"purged", "http_4xx"}
    assert list(verify(tmp_path)) == []


def test_a_purge_that_is_killed_is_finished_by_the_next(tmp_path):
    """Killed before each renaming and removal of an exchange; needs processes that die."""
    uids = listed(tmp_path / "uids", *(each.image.candidate.uid for each in kept()[:3]))
    folders = [tmp_path / str(steps) for steps in range(9)]
    for folder in folders:
        write(folder)
    died = before_each_renaming(
        "from cahlib.dataset.maintain.purge import PurgeLists, purge",
        f"list(purge(folder, PurgeLists(uids={[*map(str, uids)]!r})))",
        folders,
    )
    assert died == ["9"] * 9  # six files, the manifest, the report, the card
    list(purge(tmp_path / "8", PurgeLists(uids=uids)))
    for folder in folders:
        list(purge(folder, PurgeLists(uids=uids)))
        assert list(verify(folder)) == []
        assert files(folder) == files(tmp_path / "8")
        assert len((folder / CHANGES_FILE).read_text().splitlines()) == 1


def test_a_change_that_was_noted_and_not_made_is_noted_once(tmp_path, monkeypatch):
    write(tmp_path)
    lists = PurgeLists(uids=listed(tmp_path / "uids", kept()[0].image.candidate.uid))
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(shard_writer, "encode_manifest", interrupt)
        list(purge(tmp_path, lists))
    assert changed_shards(tmp_path) == {"s-0"}
    assert len(list(purge(tmp_path, lists))) == 1
    assert len((tmp_path / CHANGES_FILE).read_text().splitlines()) == 1


def interrupt(*_):
    raise KeyboardInterrupt


def test_mistakes_are_said_in_one_sentence(tmp_path, capsys):
    write(tmp_path / "dataset")
    (tmp_path / "garbage").write_text(f"{'0' * 32}\nhello\n")
    for arguments, sentence in (
        (["dataset"], "give a list with --hashes"),
        (
            ["dataset", "--hashes", "garbage"],
            "hashes: line 2 of .*garbage is not a valid md5, sha1",
        ),
        (["dataset", "--urls", "none"], "urls: .*none cannot be read"),
        (["elsewhere", "--uids", "garbage"], "there is no such folder"),
        ([".", "--urls", "empty"], "holds no dataset"),
    ):
        (tmp_path / "empty").touch()
        before = sorted(tmp_path.iterdir())
        paths = [str(tmp_path / each) if each[0] != "-" else each for each in arguments]
        assert main(["purge", *paths]) == 2
        assert re.search(sentence, capsys.readouterr().err)
        assert sorted(tmp_path.iterdir()) == before


def test_nobody_else_may_be_writing(tmp_path):
    write(tmp_path)
    uids = listed(tmp_path / "uids", kept()[0].image.candidate.uid)
    with lock_dataset(tmp_path), pytest.raises(ConfigError, match="another command is writing"):
        list(purge(tmp_path, PurgeLists(uids=uids)))


def test_a_damaged_shard_stays_as_it_is(tmp_path):
    write(tmp_path)
    write_pages(tmp_path, {})
    tar = tmp_path / "images/00000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    before = files(tmp_path)
    uids = listed(tmp_path / "uids", kept()[0].image.candidate.uid)
    with pytest.raises(RunError, match="s-0 cannot be read"):
        list(purge(tmp_path, PurgeLists(uids=uids)))
    assert files(tmp_path) == before


def test_the_run_tells_what_is_left(tmp_path):
    (tmp_path / "a.warc.wat.gz").write_bytes(gzip.compress(b"WARC/1.0"))
    job = Job.from_values(
        {
            "output": str(tmp_path / "dataset"),
            "crawl": str(tmp_path / "a.warc.wat.gz"),
            "contact": "tests@example.org",
        }
    )
    world.finish(job)
    uids = listed(tmp_path / "uids", *(each.image.candidate.uid for each in kept()[:3]))
    list(purge(job.output.folder, PurgeLists(uids=uids)))
    assert run(job).stats.left[Stage.JUDGE] == 30 - 3
