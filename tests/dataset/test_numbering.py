"""Tars have numbers without holes, whatever is killed, taken out or brought elsewhere."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cahlib.core.errors import RunError
from cahlib.core.records import DropReason
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.description import Description, commit_shards
from cahlib.dataset.maintain.numbering import number_tars, unnumber_tars
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.maintain.repair import plan_repair, repair
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import (
    encode_manifest,
    manifest_path,
    read_manifest,
    read_manifests,
    tar_path,
)
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.upload import upload_pages, upload_shards
from cahlib.dataset.tar_index import read_tar_sizes
from cahlib.dataset.write.shard_writer import read_uids, recover_interrupted
from tests.world import judged as world

#: Shards by their first picture, in the order in which they are made; None has no pairs.
SHARDS = {"s-3": 0, "s-0": None, "s-1": 100, "s-5": None, "s-4": 200, "s-2": 300}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset as a run leaves it before its last words."""
    folder = tmp_path_factory.mktemp("made") / "set"
    for shard, first in SHARDS.items():
        add(folder, shard, first)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "set")


def add(folder, shard, first):
    if first is None:
        images = [world.judged(900, reason=DropReason.DISSIMILAR)]
    else:
        images = world.some(4, first=first)[0]
    world.write_these(folder, images, shard=shard, spec=world.with_forms("images", "embeddings"))


def names(folder):
    return sorted(path.name for path in (folder / "images").glob("*.tar"))


def numbers(folder):
    """The tar of each shard that has one."""
    return {
        each.shard.id: Path(tar_path(each)).stem
        for each in read_manifests(folder)
        if tar_path(each)
    }


def contents(folder):
    """All files but the manifests, tars by the shard that has them."""
    found = {}
    for each in read_manifests(folder):
        for path in each.files:
            name = f"{each.shard.id}.tar" if path == tar_path(each) else path
            found[name] = (folder / path).read_bytes()
    return found


def test_numbers_have_no_holes_whatever_shards_are_empty_and_stay(folder):
    before = contents(folder)
    write_pages(folder, {})
    assert names(folder) == [f"{n:05}.tar" for n in range(4)]
    assert read_tar_sizes(folder) == {f"{n:05}.tar": 2 for n in range(4)}
    assert contents(folder) == before and list(verify(folder)) == []
    first = numbers(folder)
    add(folder, "s-00", 400)
    assert sorted(names(folder)) == [*(f"{n:05}.tar" for n in range(4)), "s-00.tar"]
    assert list(verify(folder)) == []
    inodes = {path: path.stat().st_ino for path in folder.rglob("*") if "s-1" in path.name}
    write_pages(folder, {})
    assert numbers(folder) == first | {"s-00": "00004"} and list(verify(folder)) == []
    assert inodes == {path: path.stat().st_ino for path in inodes}


def killed(folder, tmp_path, monkeypatch, act):
    """Copies of a folder as a kill would leave it, one before each name that is given or taken."""
    kept, own = [], {name: getattr(Path, name) for name in ("replace", "unlink")}

    def watched(name):
        def step(path, *args, **more):
            if path.is_relative_to(folder):
                kept.append(shutil.copytree(folder, tmp_path / str(len(kept))))
            return own[name](path, *args, **more)

        return step

    with monkeypatch.context() as watching:
        for name in own:
            watching.setattr(Path, name, watched(name))
        act()
    assert len(kept) >= 8
    return kept


@pytest.mark.parametrize("back", [False, True], ids=["numbered", "named by shards"])
def test_a_kill_at_any_moment_costs_nothing(folder, tmp_path, monkeypatch, back):
    if back:
        number_tars(folder)
    act = unnumber_tars if back else number_tars
    before = contents(folder)
    for each in killed(folder, tmp_path, monkeypatch, lambda: act(folder)):
        recover_interrupted(each)
        assert contents(each) == before and list(verify(each)) == []
        act(each)
        assert names(each) == names(folder) and contents(each) == before
        assert list(verify(each)) == []


@pytest.mark.parametrize("act", ["number", "unnumber", "purge"])
def test_a_repair_finishes_what_was_killed_and_gives_up_nothing(folder, tmp_path, monkeypatch, act):
    if act != "number":
        number_tars(folder)
    listed = tmp_path / "uids"
    listed.write_text(read_uids(folder, read_manifest(folder, "s-1"))[0])
    acts = {
        "number": lambda: number_tars(folder),
        "unnumber": lambda: unnumber_tars(folder),
        "purge": lambda: [*purge(folder, PurgeLists(uids=[str(listed)]))],
    }
    before = contents(folder)
    for each in killed(folder, tmp_path, monkeypatch, acts[act]):
        found = plan_repair(each)
        assert found.broken == {}
        repair(found)
        assert list(verify(each)) == []
        assert (
            contents(each) == before if act != "purge" else contents(each).keys() == before.keys()
        )


def test_a_copy_that_keeps_the_manifest_of_an_older_change_is_not_damaged_by_it(folder, tmp_path):
    path = folder / manifest_path("s-1")
    number_tars(folder)
    older = path.read_bytes()
    listed = tmp_path / "uids"
    listed.write_text(read_uids(folder, read_manifest(folder, "s-1"))[0])
    list(purge(folder, PurgeLists(uids=[str(listed)])))
    before = contents(folder)
    path.with_name(f".{path.name}.part").write_bytes(older)
    repair(plan_repair(folder))
    assert contents(folder) == before and list(verify(folder)) == []


def test_holes_that_a_purge_leaves_are_closed(folder, tmp_path):
    write_pages(folder, {})
    gone = next(id for id, number in numbers(folder).items() if number == "00001")
    others = {name: data for name, data in contents(folder).items() if gone not in name}
    listed = tmp_path / "uids"
    listed.write_text("\n".join(read_uids(folder, read_manifest(folder, gone))))
    (change,) = purge(folder, PurgeLists(uids=[str(listed)]))
    assert (change.shard, change.left) == (gone, 0)
    assert names(folder) == [f"{n:05}.tar" for n in range(3)] and list(verify(folder)) == []
    assert {name: data for name, data in contents(folder).items() if gone not in name} == others


@pytest.mark.parametrize("damage", ["manifest", "table"])
def test_a_shard_that_is_given_up_loses_its_tar_and_no_other(folder, damage):
    write_pages(folder, {})
    commit_shards(folder, Description(layout=2), SHARDS)
    before = contents(folder)
    if damage == "manifest":
        (folder / "shards/s-1.json").write_bytes(b"{}")
        write_pages(folder, {})
        assert len(names(folder)) == 4  # it may be mended, so its number is kept
    else:
        (folder / "metadata/metadata_s-1.parquet").unlink()
    repair(plan_repair(folder))
    assert list(verify(folder)) == [] and names(folder) == [f"{n:05}.tar" for n in range(3)]
    add(folder, "s-1", SHARDS["s-1"])
    write_pages(folder, {})
    assert names(folder) == [f"{n:05}.tar" for n in range(4)] and contents(folder) == before


def test_a_tar_whose_manifest_was_lost_goes_when_its_shard_was_done_again(folder):
    write_pages(folder, {})
    (folder / "shards/s-1.json").unlink()
    write_pages(folder, {})
    assert len(names(folder)) == 4  # these pairs are nowhere else
    add(folder, "s-1", SHARDS["s-1"])
    write_pages(folder, {})
    assert names(folder) == [f"{n:05}.tar" for n in range(4)]
    assert list(verify(folder)) == []


@pytest.mark.parametrize("damage", ["cut table", "no table", "cut tar", "no tar but a folder"])
def test_a_tar_of_which_nobody_knows_what_it_is_stays(folder, damage):
    write_pages(folder, {})
    stray = shutil.copy(folder / "images/00000.tar", folder / "images/00007.tar")
    table = folder / "metadata/metadata_s-2.parquet"
    if "tar" in damage:
        stray.unlink()
    if damage == "cut tar":
        stray.write_bytes((folder / "images/00000.tar").read_bytes()[:3000])
    elif damage == "no tar but a folder":
        stray.mkdir()
    elif damage == "cut table":
        table.write_bytes(table.read_bytes()[:100])
    else:
        table.unlink()
    write_pages(folder, {})
    assert names(folder) == [*(f"{n:05}.tar" for n in range(4)), "00007.tar"]


def test_where_names_must_be_those_of_shards_they_stay(folder):
    own = names(folder)
    RunDirectory(folder).path.mkdir()
    RunDirectory(folder).session.write_text("kernel")
    write_pages(folder, {})
    RunDirectory(folder).session.unlink()
    write_pages(folder, {"output": "s3://bucket/set"})
    commit_shards(folder, Description(layout=1), SHARDS)
    write_pages(folder, {})
    assert names(folder) == own and list(verify(folder)) == []


def test_what_was_copied_to_a_url_is_changed_there_and_keeps_all(folder, tmp_path):
    """A tar takes the number of a shard that was purged; neither is lost there."""
    url = (tmp_path / "there").as_uri()
    write_pages(folder, {})
    upload_shards(list(read_manifests(folder)), folder, url)
    upload_pages(folder, url)
    gone = next(id for id, number in numbers(folder).items() if number == "00001")
    listed = tmp_path / "uids"
    listed.write_text("\n".join(read_uids(folder, read_manifest(folder, gone))))
    assert len(list(purge(folder, PurgeLists(uids=[str(listed)])))) == 1
    for order in (1, -1):
        there = shutil.copytree(tmp_path / "there", tmp_path / f"copy{order}")
        shards = list(read_manifests(folder))[::order]
        upload_shards(shards, folder, there.as_uri())
        upload_pages(folder, there.as_uri())
        assert names(there) == names(folder) and list(verify(there)) == []
        assert contents(there) == contents(folder)


def test_a_copy_replaces_no_other_shards_tars(folder, tmp_path):
    write_pages(folder, {})
    other = tmp_path / "other"
    add(other, "t-0", 700)
    write_pages(other, {})
    there = shutil.copytree(other, tmp_path / "there")
    with pytest.raises(RunError, match=r"images/00000.tar at .* belongs to another shard, t-0"):
        upload_shards(list(read_manifests(folder)), folder, there.as_uri())
    assert list(verify(there)) == [] and contents(there) == contents(other)


def test_files_that_are_elsewhere_are_not_renamed(folder):
    number_tars(folder)
    (manifest,) = (each for each in read_manifests(folder) if each.shard.id == "s-1")
    away = replace(manifest, place="s3://bucket/set")
    (folder / "shards/s-1.json").write_bytes(encode_manifest(away))
    (folder / tar_path(manifest)).unlink()
    before = numbers(folder)
    number_tars(folder)
    assert numbers(folder) == before
    unnumber_tars(folder)
    assert read_manifest(folder, "s-1") == away
    assert names(folder) == ["s-2.tar", "s-3.tar", "s-4.tar"]
