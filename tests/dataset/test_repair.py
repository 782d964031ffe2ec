"""Whatever is damaged in a dataset is given up by a repair, and nothing else."""

import os
import shutil
from dataclasses import replace
from itertools import cycle

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cahlib.core.lock import lock_dataset
from cahlib.dataset.description import (
    DESCRIPTION_FILE,
    Description,
    commit_shards,
    read_description,
)
from cahlib.dataset.layout import CURRENT_LAYOUT, FOLDERS, PAGES
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.maintain.repair import plan_repair, repair
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import encode_manifest, manifest_path, read_manifest, read_manifests
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.write.shard_writer import read_uids
from tests.dataset.test_upload import memory, store  # noqa: F401 - fixtures
from tests.world import judged as world
from tests.world.command import said

SHARDS = "s-0", "s-1", "s-2"
DIGEST = "5" * 64


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The files of a dataset of three shards, one of which has no pairs.

    It is of the first layout, whose tars have the names of their shards.
    """
    scores = {score: f"ViT-tiny/none {score}" for score in world.SPEC.scores}
    return made(tmp_path_factory.mktemp("sound"), scores=scores, layout=1)


def made(folder, *, layout, **spec):
    """The files of such a dataset, which has every form."""
    spec = replace(world.SPEC, settings=DIGEST, layout=layout, **spec)
    world.write(folder, count=5, shard="s-0", spec=spec)
    world.write(folder, count=5, first=100, shard="s-1", spec=spec)
    world.write(folder, count=2, first=201, shard="s-2", spec=spec)
    ours = Description(settings={"threshold": 0.3}, digest=DIGEST, layout=layout)
    commit_shards(folder, ours, SHARDS)
    write_pages(folder, {})
    assert {path.name for path in folder.iterdir()} == {
        *FOLDERS, *PAGES, DESCRIPTION_FILE,
    }  # fmt: skip
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def put(place, content):
    at = files_at(place)
    for path in at.sizes(["metadata", *SHARDS, "images", "img_emb", "text_emb", "shards"]):
        at.remove(path)
    for path, data in content.items():
        at.write(path, data)


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {"flipped": flipped, "cut": lambda data: data[:-1], "emptied": lambda data: b""}


def broken(whole, folder, path, *, damage):
    """Make a folder of links to all files but one, which is damaged, or is not there."""
    shutil.copytree(whole, folder, copy_function=os.link)
    data = (folder / path).read_bytes()
    (folder / path).unlink()
    if damage:
        (folder / path).write_bytes(damage(data))


def mended(place, sound, path):
    """See that a damaged file is found, and costs no more than its shard."""
    shard = next((each for each in SHARDS if each in path), None)
    assert any(path in problem for problem in verify(place)), path
    repair(plan_repair(place))
    assert list(verify(place)) == [], path
    left = {each.shard.id for each in read_manifests(place)}
    assert left == {*SHARDS} - {shard}, path
    at = files_at(place)
    for each, data in sound.items():
        whose = next((one for one in SHARDS if one in each), None)
        if whose and whose != shard:
            assert at.read(each) == data
        if whose == shard and shard:
            assert not at.exists(each)
    said = read_description(place)
    assert {*said.committed} == left and (said.digest, len(said.pages)) == (DIGEST, 3)


@pytest.mark.parametrize(("turn", "damage"), [*enumerate([*DAMAGES, "deleted"])])
def test_every_file_of_a_folder_can_be_mended(tmp_path, sound, turn, damage):
    """Each file of a shard in two of four ways, each kind of file in all."""
    of_shards = sorted(path for path in sound if any(shard in path for shard in SHARDS))
    put(tmp_path / "sound", sound)
    for number, path in enumerate(sorted({*sound} - {*of_shards[turn % 2 :: 2]})):
        folder = tmp_path / str(number)
        broken(tmp_path / "sound", folder, path, damage=DAMAGES.get(damage))
        mended(folder, sound, path)
    assert list(verify(tmp_path / "sound")) == []


def test_every_file_can_be_mended_where_tars_have_numbers(tmp_path):
    sound = made(tmp_path / "sound", layout=CURRENT_LAYOUT)
    whose = {
        path: each.shard.id
        for each in read_manifests(tmp_path / "sound")
        for path in (*each.files, manifest_path(each.shard.id))
    }
    assert whose["images/00001.tar"] == "s-1"
    parts = {(id, path.split("/")[0]): sound[path] for path, id in whose.items()}
    damages, folder = cycle([*DAMAGES.values(), None]), tmp_path / "set"
    for path in sorted(sound):
        shutil.rmtree(folder, ignore_errors=True)
        broken(tmp_path / "sound", folder, path, damage=next(damages))
        assert any(path in problem for problem in verify(folder)), path
        repair(plan_repair(folder))
        assert list(verify(folder)) == [], path
        left = list(read_manifests(folder))
        assert {each.shard.id for each in left} == {*SHARDS} - {whose.get(path)}, path
        for each in left:  # the tars of those may have moved up
            for name in each.files:
                assert (folder / name).read_bytes() == parts[each.shard.id, name.split("/")[0]]


@pytest.mark.parametrize("kind", ["file", "memory", "s3"])
def test_every_file_at_a_url_can_be_mended(tmp_path, sound, kind, memory, store):  # noqa: F811
    urls = {"file": (tmp_path / "there").as_uri(), "memory": memory, "s3": "s3://bucket/data"}
    place, damages = urls[kind], cycle([*DAMAGES.values(), None])
    at = files_at(place)
    every = sorted(path for path in sound if "s-0" not in path and "s-2" not in path)
    for path in every[::3] if kind == "s3" else every:  # a request costs more than a file
        put(place, sound)
        damage = next(damages)
        if damage:
            at.write(path, damage(sound[path]))
        else:
            at.remove(path)
        mended(place, sound, path)


def test_what_would_be_done_is_said_and_not_done(tmp_path, sound, capsys):
    put(tmp_path, sound)
    (tmp_path / "images/s-1.tar").unlink()
    (tmp_path / "images/.s-9.tar.part").write_bytes(b"half")
    (tmp_path / "metadata/metadata_s-8.parquet").write_bytes(b"of no shard")
    (tmp_path / "shards/s-0 (1).json").write_bytes(b"{}")
    (tmp_path / "images/my notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    dry = said(capsys, "repair", tmp_path, "--dry-run")
    assert (dry.returncode, sorted(tmp_path.rglob("*"))) == (0, before)
    told = dry.stdout.splitlines()
    assert len(told) == 5
    done = said(capsys, "repair", tmp_path)
    assert done.stdout.splitlines()[:-1] == told
    assert "Discarded 1 shard, removed 3 files." in done.stdout
    assert "images/my notes.txt is not one of a dataset's files. It is left alone" in done.stdout
    assert done.returncode == 1 and (tmp_path / "images/my notes.txt").exists()
    (tmp_path / "images/my notes.txt").unlink()
    assert said(capsys, "repair", tmp_path).returncode == 0
    assert list(verify(tmp_path)) == []
    assert said(capsys, "repair", tmp_path, "--dry-run").stdout == "There is nothing to repair.\n"


@pytest.mark.parametrize(
    "name",
    [
        "shards/s-0 (1).json",
        "shards/s-0 (Ada's conflicted copy 2026-11-28).json",
        "shards/s-0.sync-conflict-20261128-101112-ABCDEF7.json",
        "metadata/metadata_s-0 (1).parquet",
        "dataset (1).json",
        "README (1).md",
    ],
)
def test_a_conflicted_copy_is_named_and_counts_for_nothing(tmp_path, sound, name):
    put(tmp_path, sound)
    (tmp_path / name).write_bytes(sound["shards/s-0.json"])
    assert [each.shard.id for each in read_manifests(tmp_path)] == [*SHARDS]
    (problem,) = verify(tmp_path)
    assert problem == (f"{name} is a conflicted copy by a cloud drive, and is ignored.")
    repair(plan_repair(tmp_path))
    assert list(verify(tmp_path)) == [] and not (tmp_path / name).exists()


def test_what_would_come_back_by_a_repair_is_said(tmp_path, sound, capsys):
    put(tmp_path / "set", sound)
    uids = tmp_path / "uids"
    uids.write_text(read_uids(tmp_path / "set", read_manifest(tmp_path / "set", "s-0"))[0])
    list(purge(tmp_path / "set", PurgeLists(uids=[str(uids)])))
    for shard in "s-0", "s-1":
        (tmp_path / f"set/metadata/metadata_{shard}.parquet").unlink()
    lines = said(capsys, "repair", tmp_path / "set").stdout.splitlines()
    told = {line.split()[0]: line for line in lines}
    back = "What was purged from it comes back then, unless it is purged again."
    assert told["metadata/metadata_s-0.parquet"].endswith(back)
    assert back not in told["metadata/metadata_s-1.parquet"]


def test_a_check_beside_a_run_says_so_instead_of_advising_a_repair(tmp_path, sound, capsys):
    put(tmp_path, sound)
    (tmp_path / "images/s-1.tar").unlink()
    assert "cah repair" in said(capsys, "verify", tmp_path).stderr
    with lock_dataset(tmp_path):
        beside = said(capsys, "verify", tmp_path)
    assert beside.returncode == 1 and "cah repair" not in beside.stderr
    assert "verify it again when that has ended." in beside.stderr
    assert "cah repair" in said(capsys, "verify", tmp_path).stderr


def test_another_datasets_shards_are_named_and_left_alone(tmp_path, sound):
    put(tmp_path, sound)
    spec = replace(world.SPEC, settings="6" * 64)
    world.write(tmp_path, first=500, shard="t-0", spec=spec)
    sentence = "shards/t-0.json was made with other settings than those in dataset.json."
    assert list(verify(tmp_path)) == [sentence]
    repair(plan_repair(tmp_path))
    assert list(verify(tmp_path)) == [sentence]


def test_a_damaged_shard_costs_no_whole_one_that_has_the_same_pair(tmp_path):
    for shard in SHARDS[:2]:
        world.write(tmp_path, count=5, shard=shard)
    (tmp_path / "images/s-0.tar").unlink()
    assert [*plan_repair(tmp_path).broken] == ["s-0"]
    repair(plan_repair(tmp_path))
    assert list(verify(tmp_path)) == []
    assert [each.shard.id for each in read_manifests(tmp_path)] == ["s-1"]


def test_a_shard_that_only_the_ledger_knows_is_missed(tmp_path, sound):
    put(tmp_path, sound)
    assert list(verify(tmp_path, known=["s-0", "s-9"])) == [
        "shards/s-9.json is missing, but the shard is committed according to the ledger."
    ]


def test_a_shard_whose_files_are_at_a_url_is_given_up_there_too(tmp_path, sound, memory):  # noqa: F811
    put(memory, sound)
    put(tmp_path, sound)
    for manifest in list(read_manifests(tmp_path)):
        moved = replace(manifest, place=memory)
        (tmp_path / manifest_path(manifest.shard.id)).write_bytes(encode_manifest(moved))
        for path in manifest.files:
            (tmp_path / path).unlink()
    assert list(verify(tmp_path)) == []
    rest = tmp_path / "images/s-0.tar"  # of a run that was killed while it let go of them
    rest.write_bytes(b"")
    assert list(verify(tmp_path)) == ["images/s-0.tar is not part of a shard here."]
    repair(plan_repair(tmp_path))
    assert not rest.exists() and list(verify(tmp_path)) == []
    MemoryFileSystem.store.pop("/data/set/images/s-1.tar")
    repair(plan_repair(tmp_path))
    for place in (tmp_path, memory):
        assert [each.shard.id for each in read_manifests(place)] == ["s-0", "s-2"]
        assert {*read_description(place).committed} == {"s-0", "s-2"}
    assert list(verify(tmp_path)) == []
