"""The embeddings of a dataset are one matrix, in which each pair has its row."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cahlib.core.errors import ConfigError, RunError
from cahlib.dataset.manifest import read_manifest
from cahlib.dataset.vectors import open_vectors, unit_rows
from tests.world import judged as world


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        world.write(tmp_path, 20, first=100 * number, shard=f"s-{number}")
    dropped = [each for each in world.some(20)[0] if each.reason]
    world.write_these(tmp_path, dropped, shard="s-1-empty")
    return tmp_path


def stored(folder, form="img_emb"):
    every = [np.load(path).astype("f4") for path in sorted(folder.glob(f"{form}/*_s-?.npy"))]
    return unit_rows(np.concatenate(every))


@pytest.mark.parametrize("form", ["img_emb", "text_emb"])
def test_all_shards_are_one_matrix(folder, form):
    vectors, wanted = open_vectors(folder, form), stored(folder, form)
    assert (len(vectors), vectors.width) == wanted.shape
    assert vectors.model == world.SPEC.model
    for size in 1, 7, 8192:
        starts, blocks = zip(*vectors.blocks(size), strict=True)
        assert max(map(len, blocks)) <= size
        assert starts == tuple(np.cumsum([0, *map(len, blocks)])[:-1])
        assert (np.concatenate(blocks) == wanted).all()
    rows = np.random.default_rng(1).permutation(len(vectors))[:17]
    assert (vectors.take(rows) == wanted[rows]).all()
    assert vectors.take(rows[:0]).shape == (0, vectors.width)


def test_a_row_is_a_pair_of_the_metadata(folder):
    vectors = open_vectors(folder)
    for row in range(len(vectors)):
        shard, position = vectors.locate(row)
        assert vectors.row(shard, position) == row
        url = pq.read_table(folder / f"metadata/metadata_{shard}.parquet")["URL"][position].as_py()
        number = int(url.split("/")[-1].split(".")[0])
        own = world.embeddings(number, 0.4)[0].astype("f4")
        assert np.abs(vectors.take(np.array([row]))[0] - own).max() < 1e-3


def test_a_vector_without_a_direction_is_like_no_other():
    rows = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1]], "f4")
    assert unit_rows(rows).tolist() == [[0.6000000238418579, 0.800000011920929], *[[0, 0]] * 3]


def test_what_cannot_be_compared_is_refused(folder, tmp_path_factory):
    path = folder / "img_emb/img_emb_s-1.npy"
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole[:40], whole[10:]):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"img_emb_s-1\.npy cannot be read .*`cah verify`"):
            list(open_vectors(folder).blocks())
    rows = read_manifest(folder, "s-1").rows
    np.save(path, np.zeros((rows, 8), "<f2"))
    with pytest.raises(ConfigError, match="8 numbers, .* of 32: they are of different models"):
        list(open_vectors(folder).blocks())
    path.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        list(open_vectors(folder).blocks())

    other = tmp_path_factory.mktemp("other")
    with pytest.raises(ConfigError, match="holds no dataset"):
        open_vectors(other)
    world.write(other, spec=world.with_forms("images"))
    with pytest.raises(ConfigError, match="shard s-0 has no embeddings"):
        open_vectors(other)
    world.write(folder, shard="s-9", spec=replace(world.SPEC, model="another/model"))
    with pytest.raises(ConfigError, match="ViT-tiny/none and another/model"):
        open_vectors(folder)


def test_they_are_read_from_a_url_too(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/vectors", recursive=True)
    vectors = open_vectors("memory://vectors")
    assert (np.concatenate([block for _, block in vectors.blocks()]) == stored(folder)).all()
    memory.rm("/vectors", recursive=True)
