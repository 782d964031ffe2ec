"""A dataset is scored again: as plain open_clip would, once, and in step with everything else."""

import io
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("open_clip", reason="scoring needs: pip install 'cahlib[gpu]'")

from cahlib.commands.cli import main
from cahlib.core.atomic import TEMPORARY_SUFFIX
from cahlib.core.config import Job, Judge, replace_settings
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.lock import lock_dataset
from cahlib.dataset.layout import PAGES
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.maintain.repair import plan_repair, repair
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifest, read_manifests
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.upload import upload_shards
from cahlib.dataset.write.shard_writer import recover_interrupted
from cahlib.model.clip import Clip
from cahlib.model.model_source import model_digest
from cahlib.model.score_names import score_columns
from cahlib.run.score_again import score_dataset
from tests.world import judged as world
from tests.world import models
from tests.world.crashes import before_each_renaming

COLUMN = "clip_tiny_random_similarity"
VECTORS = [f"{form}.tiny_random/{form}_s-0.npy" for form in ("img_emb", "text_emb")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scored(model, tmp_path_factory):
    """A dataset of two shards, and one without pairs, that was scored again."""
    folder = tmp_path_factory.mktemp("scored")
    dataset(folder)
    before = files(folder)
    changes = list(score_dataset(folder, judge(model), embeddings=True))
    return folder, before, changes


@pytest.fixture
def folder(scored, tmp_path):
    """A copy of it."""
    return shutil.copytree(scored[0], tmp_path / "dataset")


def judge(model, **more):
    return Judge(model=str(model), threshold=-1, **more)


def dataset(folder, spec=world.SPEC):
    world.write(folder, shard="s-0", spec=spec)
    world.write(folder, count=10, first=100, shard="s-1", spec=spec)
    world.write(folder, count=2, first=201, shard="s-2", spec=spec)  # keeps none
    write_pages(folder, {})
    return folder


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "run" and path.name not in PAGES
    }


def table(folder, shard="s-0"):
    return pq.read_table(folder / f"metadata/metadata_{shard}.parquet")


def pictures(folder, manifest):
    """The pictures and texts of a shard, as its tar has them."""
    path = next(each for each in manifest.files if each.startswith("images/"))
    with tarfile.open(folder / path) as tar:
        found = [(member.name, tar.extractfile(member).read()) for member in tar]
    data = [data for name, data in found if not name.endswith((".json", ".txt"))]
    return data, [data.decode() for name, data in found if name.endswith(".txt")]


def test_scores_and_vectors_are_those_of_plain_open_clip(scored, model):
    folder, _, changes = scored
    parts = models.plain(model)
    for shard, change in zip(("s-0", "s-1"), changes, strict=True):
        data, texts = pictures(folder, read_manifest(folder, shard))
        images, of_texts = models.plain_embeddings(parts, data, texts)
        wanted = (images * of_texts).sum(axis=1)
        found = table(folder, shard)[COLUMN].to_numpy()
        assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-3
        assert (change.shard, change.pairs, change.unreadable) == (shard, len(data), 0)
        assert change.mean == pytest.approx(wanted.mean(), abs=1e-3)
        for form, vectors in (("img_emb", images), ("text_emb", of_texts)):
            stored = np.load(folder / f"{form}.tiny_random/{form}_{shard}.npy")
            assert stored.dtype == np.float16 and np.abs(stored - vectors).max() < 2e-3


def test_nothing_else_changes(scored):
    folder, before, _ = scored
    assert list(verify(folder)) == []
    after = files(folder)
    changed = {path for path in before if after[path] != before[path]}
    tables = {f"metadata/metadata_{shard}.parquet" for shard in ("s-0", "s-1")}
    manifests = {f"shards/{shard}.json" for shard in ("s-0", "s-1")}
    assert changed == tables | manifests
    assert {path.partition("/")[0] for path in after.keys() - before.keys()} == {
        "img_emb.tiny_random", "text_emb.tiny_random",
    }  # fmt: skip
    assert table(folder).drop_columns([COLUMN]).equals(table_before(before))
    assert not list(folder.rglob("*s-2.npy"))


def table_before(before):
    return pq.read_table(io.BytesIO(before["metadata/metadata_s-0.parquet"]))


def test_a_second_time_nothing_is_left_to_do(folder, model, capsys):
    before = files(folder)
    assert list(score_dataset(folder, judge(model), embeddings=True)) == []
    assert list(score_dataset(folder, judge(model))) == []
    assert files(folder) == before
    assert main(["score", str(folder), "--model", str(model)]) == 0
    assert capsys.readouterr().out == "Every shard has these scores already.\n"


def test_models_stand_side_by_side(folder, model, tmp_path):
    other = models.write(tmp_path / "other", name="other", seed=1)
    assert len(list(score_dataset(folder, judge(other)))) == 2
    second = "clip_other_random_similarity"
    assert table(folder).column_names[-2:] == [COLUMN, second]
    assert not (folder / "img_emb.other_random").exists()
    before = table(folder)[second].to_pylist()
    # the vectors alone were lacking; the scores stay what they were
    assert len(list(score_dataset(folder, judge(other), embeddings=True))) == 2
    assert table(folder)[second].to_pylist() == pytest.approx(before)
    assert len(list((folder / "img_emb.other_random").iterdir())) == 2
    assert list(verify(folder)) == []


def test_shards_that_the_model_has_judged_are_left_as_they_are(model, tmp_path):
    scores = score_columns("tiny/random", ("similarity", "age minor"), layout=2)
    own = replace(world.SPEC, model="tiny/random", scores=scores)
    world.write(tmp_path, shard="s-0", spec=own)
    world.write(tmp_path, first=100, shard="s-1")
    before = table(tmp_path)
    assert [each.shard for each in score_dataset(tmp_path, judge(model))] == ["s-1"]
    assert table(tmp_path).equals(before)
    assert COLUMN in table(tmp_path, "s-1").column_names


def test_another_model_of_the_same_name_is_refused(folder, tmp_path):
    imposter = models.write(tmp_path / "imposter", seed=1)
    before = files(folder)
    with pytest.raises(ConfigError, match="another model called tiny/random; give this one"):
        list(score_dataset(folder, judge(imposter)))
    assert files(folder) == before


def test_what_is_purged_goes_out_of_the_new_files_too(folder, tmp_path):
    rows = table(folder).to_pylist()
    vectors = [np.load(folder / path) for path in VECTORS]
    (tmp_path / "uids").write_text("".join(f"{row['uid']}\n" for row in rows[1::2]))
    assert len(list(purge(folder, PurgeLists(uids=[str(tmp_path / "uids")])))) == 1
    assert table(folder)[COLUMN].to_pylist() == [row[COLUMN] for row in rows[::2]]
    for path, before in zip(VECTORS, vectors, strict=True):
        assert np.array_equal(np.load(folder / path), before[::2])
    with tarfile.open(folder / "images/00000.tar") as tar:
        samples = [tar.extractfile(each).read() for each in tar if each.name.endswith(".json")]
    assert samples and not any(COLUMN.encode() in each for each in samples)
    assert list(verify(folder)) == []
    assert len(read_manifest(folder, "s-0").added) == 1


def test_what_was_scored_can_be_chosen_by(folder, tmp_path, capsys):
    pytest.importorskip("duckdb", reason="choosing needs: pip install 'cahlib[query]'")
    rows, into = table(folder).to_pylist(), tmp_path / "chosen"
    least = sorted(row[COLUMN] for row in rows)[7]
    where = f"{COLUMN} >= {least!r}"
    assert main(["select", str(folder), "--where", where, "--into", str(into)]) == 0
    stays = [row[COLUMN] >= least for row in rows]
    assert table(into).to_pylist() == [row for row, kept in zip(rows, stays, strict=True) if kept]
    for path in VECTORS:
        assert np.array_equal(np.load(into / path), np.load(folder / path)[stays])
    assert list(verify(into)) == []


def test_a_shard_that_loses_all_pairs_loses_its_vectors(folder, tmp_path):
    uids = "".join(f"{uid}\n" for uid in table(folder)["uid"].to_pylist())
    (tmp_path / "uids").write_text(uids)
    assert len(list(purge(folder, PurgeLists(uids=[str(tmp_path / "uids")])))) == 1
    assert not (folder / VECTORS[0]).exists() and list(verify(folder)) == []


@pytest.mark.parametrize("path", VECTORS)
def test_damage_of_the_new_files_costs_no_more_than_these(folder, model, path):
    before = files(folder)
    data = bytearray(before[path])
    data[-1] ^= 0x40
    (folder / path).write_bytes(data)
    assert any(path in each for each in verify(folder))
    (folder / path).unlink()
    assert list(verify(folder)) == [f"{path} is missing."]
    (folder / "img_emb.tiny_random" / f".img_emb_s-1.npy{TEMPORARY_SUFFIX}").touch()
    found = plan_repair(folder)
    assert not found.broken and "`cah score` makes them again." in "".join(found.lines())
    repair(found)
    assert list(verify(folder)) == []
    after = files(folder)
    assert before.keys() - after.keys() == {*VECTORS}
    changed = {each for each in before if each in after and after[each] != before[each]}
    assert changed == {"shards/s-0.json"}
    assert [each.shard for each in score_dataset(folder, judge(model), embeddings=True)] == ["s-0"]
    assert all((folder / each).read_bytes() == before[each] for each in VECTORS)


def test_a_shard_that_is_discarded_loses_them_too(folder):
    (folder / "metadata/metadata_s-0.parquet").unlink()
    repair(plan_repair(folder))
    assert not [each for each in files(folder) if "s-0" in each]
    assert list(verify(folder)) == []


def test_vectors_that_do_not_give_the_similarity_are_found(folder):
    vectors = np.load(folder / VECTORS[0])
    world.replace_matrix(folder, "s-0", VECTORS[0], -vectors)
    (problem,) = verify(folder)
    assert problem.startswith("s-0: the embeddings by tiny_random of row")


def test_a_dataset_in_use_is_refused(folder, model, capsys):
    with lock_dataset(folder):
        assert main(["score", str(folder), "--model", str(model)]) == 2
    assert "another command is writing to" in capsys.readouterr().err


def test_a_damaged_shard_is_left_alone_and_the_others_are_scored(model, tmp_path, capsys):
    folder = dataset(tmp_path)
    tar = folder / "images/00000.tar"
    data = bytearray(tar.read_bytes())
    data[1000] ^= 1
    tar.write_bytes(data)
    before = files(folder)
    assert main(["score", str(folder), "--model", str(model)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cah: 1 shard could not be scored: shard s-0 is damaged: images/00000")
    assert COLUMN in table(folder, "s-1").column_names
    after = files(folder)
    assert not [path for path in before if "s-0" in path and after[path] != before[path]]


def test_a_model_that_cannot_read_an_image_gives_it_no_score(model, tmp_path, monkeypatch):
    folder = dataset(tmp_path)
    prepare, seen = Clip.prepare, []

    def first_fails(self, data, thumb=b""):
        seen.append(data)
        return None if data == seen[0] else prepare(self, data, thumb)

    monkeypatch.setattr(Clip, "prepare", first_fails)
    first, _ = score_dataset(folder, judge(model), embeddings=True)
    assert (first.pairs, first.unreadable) == (14, 1)
    assert table(folder)[COLUMN].to_pylist()[0] is None
    assert not np.load(folder / VECTORS[0])[0].any()
    assert list(verify(folder)) == []


@pytest.mark.parametrize(
    ("forms", "works"), [((), False), (("embeddings",), False), (("tfrecords",), True)]
)
def test_images_are_wherever_the_dataset_has_them(model, tmp_path, forms, works):
    folder = dataset(tmp_path, world.with_forms(*forms))
    if works:
        assert len(list(score_dataset(folder, judge(model)))) == 2
        assert list(verify(folder)) == []
    else:
        with pytest.raises(ConfigError, match="has no images to score"):
            list(score_dataset(folder, judge(model)))


def test_what_a_kill_leaves_is_sound_and_continued(model, scored, tmp_path):
    """Each process dies one renaming later than the one before."""
    folders = [dataset(tmp_path / f"{number}") for number in range(5)]
    rows, vectors = table(scored[0]), {path: np.load(scored[0] / path) for path in VECTORS}
    np.savez(tmp_path / "made.npz", similarity=rows[COLUMN].to_numpy(), **vectors)
    digest = model_digest(str(model), "")
    work = f"add(folder, {str(tmp_path / 'made.npz')!r}, {digest!r})"
    codes = before_each_renaming(_ADD, work, folders)
    assert codes == ["9", "9", "9", "9", "0"]
    for folder in folders:
        recover_interrupted(folder)
        assert list(verify(folder)) == []
        whole = bool(read_manifest(folder, "s-0").added)
        assert whole == (folder / VECTORS[1]).exists() == (COLUMN in table(folder).column_names)
        assert len(list(score_dataset(folder, judge(model), embeddings=True))) == 2 - whole
        assert files(folder) == files(scored[0])


_ADD = f"""
import numpy as np, pyarrow as pa
from cahlib.dataset.maintain.add_scores import add_scores
from cahlib.dataset.manifest import AddedScores, read_manifest

def add(folder, made, digest):
    vectors = dict(np.load(made))
    columns = {{{COLUMN!r}: pa.array(vectors.pop("similarity"))}}
    added = AddedScores(model="tiny/random", columns=tuple(columns), digest=digest)
    add_scores(folder, read_manifest(folder, "s-0"), [added], columns, vectors)
"""


def test_what_is_at_a_url_gets_the_new_files(scored, tmp_path):
    folder, _, _ = scored
    there = tmp_path / "there"
    manifests = [read_manifest(folder, shard) for shard in ("s-0", "s-1", "s-2")]
    upload_shards(manifests, folder, there.as_uri())
    assert {*VECTORS} <= files(there).keys()
    assert list(verify(there.as_uri())) == []


def test_the_url_of_the_run_gets_what_was_scored_though_a_shard_is_damaged(model, tmp_path):
    here, there = dataset(tmp_path / "here"), tmp_path / "there"
    job = replace_settings(Job(), output=there.as_uri())
    job.store(here / "run" / "job.json")
    upload_shards([*read_manifests(here)], here, there.as_uri())
    (here / "metadata/metadata_s-1.parquet").unlink()
    with pytest.raises(RunError, match="1 shard could not be scored: shard s-1 is damaged"):
        list(score_dataset(here, judge(model), embeddings=True))
    assert COLUMN in table(there).column_names and {*VECTORS} <= files(there).keys()
    assert list(verify(there.as_uri())) == []


def test_a_damaged_manifest_is_one_sentence(folder, model):
    (folder / "shards/s-0.json").write_bytes(b"{")
    with pytest.raises(RunError, match="s-0.json is damaged"):
        list(score_dataset(folder, judge(model)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["score", "nowhere", "--preset", "quality"], "cah: nowhere holds no dataset: there is"),
        (["score", "s3://b/x", "--preset", "quality"], "cah: s3://b/x is a URL, and a dataset is"),
        (["score", "DATASET"], "cah: score: name a model with --preset or --model."),
        (["score", "DATASET", "--model", "ViT-B-33"], "cah: model: 'ViT-B-33' is neither"),
        (["score", "DATASET", "--pretrained", "openai"], "cah: score: name a model"),
        (["score", "EMPTY", "--preset", "quality"], "cah: EMPTY holds no dataset"),
    ],
)
def test_mistakes_are_told_in_one_sentence(folder, tmp_path, capsys, arguments, sentence):
    (empty := tmp_path / "empty").mkdir()
    names = {"DATASET": str(folder), "EMPTY": str(empty)}
    assert main([names.get(each, each) for each in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence.replace("EMPTY", str(empty)))
    assert list(empty.iterdir()) == []
