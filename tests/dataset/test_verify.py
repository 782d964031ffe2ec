"""Whatever is damaged in a dataset is found, and named."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahlib.core.errors import ConfigError
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import encode_manifest, manifest_path, read_manifest
from cahlib.dataset.storage.hashed_file import FileRecord
from cahlib.dataset.write.tfrecord import encode_example, frame_record, read_tfrecords
from tests.world import judged as world

FILES = {
    "metadata": "metadata/metadata_s-1.parquet",
    "images": "images/s-1.tar",
    "img_emb": "img_emb/img_emb_s-1.npy",
    "text_emb": "text_emb/text_emb_s-1.npy",
    "tfrecords": "tfrecords/s-1.tfrecord",
    "optouts": "optouts/s-1.jsonl",
    "outcomes": "outcomes/s-1.parquet",
}


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """The files of a dataset of three shards, one of which has no pairs."""
    folder = tmp_path_factory.mktemp("sound")
    world.write(folder, shard="s-0")
    world.write(folder, first=100, shard="s-1")
    world.write(folder, count=2, first=201, shard="s-2")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def folder(sound, tmp_path):
    for path, data in sound.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    return tmp_path


def rewrite(folder, path, data):
    """Change a file and renew the manifest, so that only a comparison of the rows can find it."""
    (folder / path).write_bytes(data)
    manifest = read_manifest(folder, "s-1")
    stored = FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    renewed = replace(manifest, files={**manifest.files, path: stored})
    (folder / manifest_path("s-1")).write_bytes(encode_manifest(renewed))


def test_a_sound_dataset_has_no_problem(folder):
    assert list(verify(folder)) == []
    assert list(verify(folder.as_uri())) == []


@pytest.mark.parametrize("path", [*FILES.values(), "shards/s-1.json"])
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_a_damaged_byte_is_found(sound, tmp_path_factory, path, data):
    folder = tmp_path_factory.mktemp("damaged")
    for each, content in sound.items():
        (folder / each).parent.mkdir(exist_ok=True)
        if each == path:
            at = data.draw(st.integers(0, len(content) - 1))
            change = data.draw(st.integers(1, 255))
            content = content[:at] + bytes([content[at] ^ change]) + content[at + 1 :]
        (folder / each).write_bytes(content)
    assert any(path in problem for problem in verify(folder))


@pytest.mark.parametrize("path", FILES.values())
def test_a_truncated_file_is_found(folder, path):
    data = (folder / path).read_bytes()
    for length in 0, len(data) // 2, len(data) - 1:
        (folder / path).write_bytes(data[:length])
        assert any(path in problem for problem in verify(folder))


@pytest.mark.parametrize("path", FILES.values())
def test_a_missing_file_is_found(folder, path):
    (folder / path).unlink()
    assert list(verify(folder)) == [f"{path} is missing."]


def test_files_of_a_shard_without_a_manifest_are_found(folder):
    (folder / "shards/s-1.json").unlink()
    assert list(verify(folder)) == [
        f"{path} is not part of a shard here." for path in sorted(FILES.values())
    ]


def test_what_an_interrupted_run_left_is_found(folder):
    (folder / "images/.s-7.tar.part").write_bytes(b"half")
    assert list(verify(folder)) == ["images/.s-7.tar.part is left over from an interrupted run."]


def test_a_pair_in_two_shards_is_found(folder):
    world.write(folder, count=1, first=104, shard="s-3")
    (problem,) = verify(folder)
    uid = world.judged(104).image.candidate.uid
    assert problem == f"The pair {uid} is in the dataset twice: in s-1 and in s-3."


def test_a_swapped_row_of_the_embeddings_is_found(folder):
    for form in "img_emb", "text_emb":
        before = (folder / FILES[form]).read_bytes()
        rows = np.load(folder / FILES[form])
        rows[[4, 5]] = rows[[5, 4]]
        out = io.BytesIO()
        np.save(out, rows)
        rewrite(folder, FILES[form], out.getvalue())
        assert list(verify(folder)) == ["s-1: the embeddings of row 4 do not give its similarity."]
        rewrite(folder, FILES[form], before)


def test_an_extra_row_of_the_embeddings_is_found(folder):
    out = io.BytesIO()
    rows = np.load(folder / FILES["img_emb"])
    np.save(out, np.concatenate([rows, rows[:1]]))
    rewrite(folder, FILES["img_emb"], out.getvalue())
    assert list(verify(folder)) == ["img_emb/img_emb_s-1.npy has 16 rows, the manifest 15."]


def tar_with(samples):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for sample in samples:
            for name, data in sample:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def samples_of(path):
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    return [members[at : at + 3] for at in range(0, len(members), 3)]


def test_a_swapped_sample_of_a_tar_is_found(folder):
    samples = samples_of(folder / FILES["images"])
    samples[2], samples[3] = samples[3], samples[2]
    rewrite(folder, FILES["images"], tar_with(samples))
    assert list(verify(folder)) == [
        "images/s-1.tar: row 2 is not the pair of that row in the metadata."
    ]


def test_a_changed_caption_in_a_tar_is_found(folder):
    samples = samples_of(folder / FILES["images"])
    name, data = samples[6][1]
    samples[6][1] = name, json.dumps(json.loads(data) | {"TEXT": "another"}).encode()
    rewrite(folder, FILES["images"], tar_with(samples))
    assert list(verify(folder)) == [
        "images/s-1.tar: row 6 is not the pair of that row in the metadata."
    ]


def test_an_extra_and_a_missing_sample_are_found(folder):
    samples = samples_of(folder / FILES["images"])
    rewrite(folder, FILES["images"], tar_with([*samples, samples[0]]))
    assert list(verify(folder)) == ["images/s-1.tar has 16 rows, the metadata 15."]
    rewrite(folder, FILES["images"], tar_with(samples[:-1]))
    assert list(verify(folder)) == ["images/s-1.tar has 14 rows, the metadata 15."]


def test_a_changed_record_is_found(folder):
    with open(folder / FILES["tfrecords"], "rb") as file:
        rows = list(read_tfrecords(file))
    rows[1], rows[0] = rows[0], rows[1]
    data = b"".join(frame_record(encode_example(row)) for row in rows)
    rewrite(folder, FILES["tfrecords"], data)
    assert list(verify(folder)) == [
        "tfrecords/s-1.tfrecord: row 0 is not the pair of that row in the metadata."
    ]


def test_a_changed_url_in_the_metadata_is_found(folder):
    table = pq.read_table(folder / FILES["metadata"])
    rows = table.to_pylist()
    rows[7]["URL"] = "https://evil.example/"
    rewrite(folder, FILES["metadata"], parquet(pa.Table.from_pylist(rows, table.schema)))
    assert list(verify(folder)) == [
        "metadata/metadata_s-1.parquet: the key of row 7 is not that of its URL and TEXT."
    ]


def test_other_columns_are_found(folder):
    table = pq.read_table(folder / FILES["metadata"]).drop_columns("md5")
    rewrite(folder, FILES["metadata"], parquet(table))
    assert list(verify(folder)) == [
        "metadata/metadata_s-1.parquet does not have the columns of a dataset's metadata."
    ]


def parquet(table):
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def test_a_manifest_that_does_not_add_up_is_found(folder):
    manifest = read_manifest(folder, "s-1")
    stats = manifest.stats
    stats.dropped.popitem()
    (folder / "shards/s-1.json").write_bytes(
        encode_manifest(replace(manifest, funnel=stats.as_dict(), rows=14))
    )
    problems = list(verify(folder))
    assert any("does not account for" in problem for problem in problems)
    assert "shards/s-1.json counts 15 pairs, but has 14 rows." in problems


@pytest.mark.parametrize("place", ["nowhere", "memory://nowhere"])
def test_a_place_without_a_dataset_is_the_users_mistake(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="holds no dataset"):
        list(verify(place))
