"""A shard comes into the dataset whole or not at all, and the field's own readers read it."""

import json
import resource
from contextlib import contextmanager
from dataclasses import replace
from hashlib import md5

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.manifest import read_manifest, read_manifests
from cahlib.dataset.storage.hashed_file import HashedFile
from cahlib.dataset.write.shard_writer import (
    ScoredParcel,
    read_uids,
    recover_interrupted,
    write_shard,
)
from tests.world import judged as world
from tests.world.crashes import before_each_renaming
from tests.world.judged import write_anew as write


def table_of(folder):
    """The dataset's table, as pandas reads it."""
    import pandas as pd  # which takes 0.3 s

    return pd.read_parquet(folder / "metadata")


def everything(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset's file
def test_rows_members_and_embeddings_are_the_same_pairs_in_the_same_order(tmp_path):
    manifest = write(tmp_path)
    kept = [each for each in world.some(30)[0] if each.reason is None]
    assert manifest.rows == len(kept) == 15
    table = table_of(tmp_path)
    images = np.load(tmp_path / "img_emb/img_emb_s-0.npy")
    texts = np.load(tmp_path / "text_emb/text_emb_s-0.npy")
    tar = webdataset.WebDataset(
        str(tmp_path / "images/s-0.tar"), shardshuffle=False, empty_check=False
    )
    samples = list(tar)
    assert images.dtype == texts.dtype == np.float16
    assert [sample["__key__"] for sample in samples] == list(table["uid"])
    for at, (pair, sample) in enumerate(zip(kept, samples, strict=True)):
        row, candidate = table.iloc[at], pair.image.candidate
        assert row["uid"] == candidate.uid
        assert (row["URL"], row["TEXT"]) == (candidate.url, candidate.text)
        assert (row["HEIGHT"], row["WIDTH"]) == (pair.image.height, pair.image.width)
        assert row["similarity"] == pair.similarity
        assert sample[pair.image.format] == pair.image.data
        assert sample["txt"].decode() == candidate.text
        assert json.loads(sample["json"])["SAMPLE_ID"] == row["SAMPLE_ID"]
        assert (images[at] == pair.image_embedding).all()
        assert (texts[at] == pair.text_embedding).all()


def test_the_first_columns_are_those_of_laion(tmp_path):
    write(tmp_path)
    schema = pq.read_schema(tmp_path / "metadata/metadata_s-0.parquet")
    assert [(field.name, str(field.type)) for field in schema][:8] == [
        ("SAMPLE_ID", "int64"),
        ("URL", "string"),
        ("TEXT", "string"),
        ("HEIGHT", "int32"),
        ("WIDTH", "int32"),
        ("LICENSE", "string"),
        ("NSFW", "string"),
        ("similarity", "double"),
    ]


def test_every_score_has_its_column_and_is_empty_where_it_was_not_given(tmp_path):
    write(tmp_path)
    table = table_of(tmp_path)
    unsafe = table["NSFW"] != "UNLIKELY"
    assert table["clip_ViT-tiny_none_similarity"].notna().all()
    assert (table["clip_ViT-tiny_none_age_minor"].notna() == unsafe).all() and unsafe.any()


def test_a_score_without_a_column_is_a_mistake(tmp_path):
    with pytest.raises(KeyError, match="age minor"):
        write(tmp_path, spec=replace(world.SPEC, scores={"similarity": "similarity"}))
    assert everything(tmp_path) == {}


def test_embedding_reader_joins_metadata_and_embeddings_over_shards_without_pairs(tmp_path):
    from embedding_reader import EmbeddingReader

    write(tmp_path, shard="s-0")
    empty = write_shard(
        tmp_path,
        [world.judged(900, reason=DropReason.DISSIMILAR)],
        ScoredParcel(
            parcel=world.parcel("s-1", images=1, refused=0),
            stats=world.stats_of([world.judged(900, reason=DropReason.DISSIMILAR)]),
        ),
        spec=world.SPEC,
        again=lambda judged: None,
    )
    write(tmp_path, first=100, shard="s-2")
    assert empty.rows == 0 and empty.files == {}
    reader = EmbeddingReader(
        embeddings_folder=str(tmp_path / "img_emb"),
        metadata_folder=str(tmp_path / "metadata"),
        meta_columns=["uid"],
        file_format="parquet_npy",
    )
    wanted = {
        each.image.candidate.uid: each.image_embedding
        for first in (0, 100)
        for each in world.some(30, first=first)[0]
        if each.reason is None
    }
    found = 0
    for vectors, rows in reader(batch_size=7, show_progress=False):
        for vector, uid in zip(vectors, rows["uid"], strict=True):
            assert (vector == wanted[uid]).all()
            found += 1
    assert found == len(wanted)


def test_only_what_is_asked_for_is_written(tmp_path):
    manifest = write(tmp_path, spec=world.with_forms())
    assert set(manifest.files) == {
        "metadata/metadata_s-0.parquet", "optouts/s-0.jsonl", "outcomes/s-0.parquet",
    }  # fmt: skip
    assert set(everything(tmp_path)) == {*manifest.files, "shards/s-0.json"}


def test_the_same_pairs_give_the_same_bytes(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    assert one.files == two.files
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert {path for path in one if one[path] != two[path]} == {"shards/s-0.json"}  # its times


def test_a_manifest_says_what_its_shard_is(tmp_path):
    manifest = write(tmp_path)
    assert read_manifest(tmp_path, "s-0") == manifest
    assert read_manifest(tmp_path, "s-1") is None
    assert list(read_manifests(tmp_path)) == [manifest]
    assert read_uids(tmp_path, manifest) == list(table_of(tmp_path)["uid"])
    for stage in Stage:
        assert manifest.stats.unaccounted(stage) == 0
    assert sum(manifest.kept.values()) == manifest.rows == sum(manifest.domains.values())
    assert sum(manifest.dropped.values()) == 15
    assert all(bin >= 30 for bin in manifest.kept)
    assert manifest.optouts == 1
    evidence = json.loads((tmp_path / "optouts/s-0.jsonl").read_text())
    assert evidence["url"] == "https://shy.example/a.jpg"


def test_a_pair_of_another_shard_is_dropped_and_counted(tmp_path):
    before = {each.image.candidate.uid for each in world.some(30)[0]}
    write(tmp_path, shard="s-0")
    manifest = write(tmp_path, first=20, shard="s-1", seen=before.__contains__)
    assert manifest.rows == 10
    assert manifest.stats.dropped[DropReason.PAIR_SEEN] == 5
    assert manifest.stats.unaccounted(Stage.JUDGE) == 0
    assert not before & set(read_uids(tmp_path, manifest))


def test_a_pair_that_comes_twice_in_a_shard_is_kept_once(tmp_path):
    made = [world.judged(1), world.judged(1)]
    stats = world.stats_of(made)
    manifest = write_shard(
        tmp_path,
        made,
        ScoredParcel(parcel=world.parcel("s-0", images=2), stats=stats),
        spec=world.SPEC,
        again=lambda judged: None,
    )
    assert manifest.rows == 1 == stats.left[Stage.JUDGE]
    assert stats.unaccounted(Stage.JUDGE) == 0


@settings(max_examples=40, deadline=None)
@given(
    url=st.text(max_size=40),
    text=st.text(min_size=1, max_size=80),
    other=st.text(st.characters(codec=None), max_size=40),
)
def test_no_text_of_the_web_stops_a_shard(tmp_path_factory, url, text, other):
    folder = tmp_path_factory.mktemp("texts")
    url = "https://a.example/" + url
    pair = world.judged(3, url=url, text=text, raw_text=other, page=other, robots=other)
    manifest = write_shard(
        folder,
        [pair],
        ScoredParcel(parcel=world.parcel("s-0", images=1), stats=world.stats_of([pair])),
        spec=world.SPEC,
        again=lambda judged: None,
    )
    row = table_of(folder).iloc[0]
    assert (row["URL"], row["TEXT"]) == (url, text)
    assert row["uid"] == md5((url + text).encode()).hexdigest() == pair.image.candidate.uid
    assert manifest.rows == 1


def test_an_error_of_the_judging_goes_through_and_leaves_nothing(tmp_path):
    def failing():
        yield from world.some(10)[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_shard(
            tmp_path,
            failing(),
            ScoredParcel(parcel=world.parcel(images=10), stats=world.some(10)[1]),
            spec=world.SPEC,
            again=lambda judged: None,
        )
    assert everything(tmp_path) == {}


def test_a_shard_made_again_replaces_itself_and_survives_a_failure(tmp_path):
    write(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(KeyError):
        write(tmp_path, spec=replace(world.SPEC, scores={}))
    assert everything(tmp_path) == before
    assert write(tmp_path, 20).rows == 10
    assert set(everything(tmp_path)) == set(before)


@contextmanager
def small_disk():
    """No file may become larger than 20 kB, as on a full disk (nor may a log of the tests)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    with small_disk(), pytest.raises(RunError, match="Make room"):
        write(tmp_path)
    assert everything(tmp_path) == {}


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "images").write_text("in the way")
    with pytest.raises(ConfigError, match="choose another folder"):
        write(tmp_path)
    assert set(everything(tmp_path)) == {"images"}


def test_what_a_crash_leaves_is_swept_and_nothing_else(tmp_path):
    """Killed before each renaming of the commit; needs processes that die."""
    folders = [tmp_path / str(steps) for steps in range(9)]
    for folder in folders:
        write(folder, shard="s-0")
        (folder / "images/own-notes.txt").write_text("the user's")
    before = everything(folders[0])
    died = before_each_renaming(
        "from tests.world.judged import some, write_anew\nsome(30, first=100)",
        'write_anew(folder, first=100, shard="s-1")',
        folders,
    )
    assert died == ["9"] * 8 + ["0"]  # seven files, then the manifest
    for folder in folders[:8]:
        assert len(everything(folder)) > len(before)
        recover_interrupted(folder)
        assert everything(folder).keys() == before.keys()
    assert read_manifest(folders[8], "s-1")


def test_who_reads_the_folder_of_a_running_run_sees_committed_shards_alone(tmp_path):
    manifest = world.write(tmp_path)
    making = HashedFile(tmp_path / "metadata" / "metadata_s-1.parquet")
    assert pq.read_table(tmp_path / "metadata").num_rows == manifest.rows
    making.discard()
