"""Images of an evaluation set are found in a dataset, by looks and by meaning, and left out."""

import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture
from PIL import ImageOps

from cahlib import demo
from cahlib.commands.cli import main
from cahlib.core.config import Crawl, Job, Judge, Output
from cahlib.core.records import DropReason
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests
from cahlib.image.perceptual_hash import with_looks
from cahlib.model.clip import load_clip
from cahlib.model.model_source import find_source
from tests.world import judged as world
from tests.world.judged import left

JUDGE = Judge(model=str(demo.MODEL), threshold=0)


@pytest.fixture(scope="module")
def made():
    """Judged images, embedded by the model that the demo has."""
    clip, made = load_clip(JUDGE), []
    for number in range(8):
        each = world.judged(number, similarity=0.5, format="png")
        image, text = clip.embed([clip.prepare(each.image.data)], [each.image.candidate.text])
        cosine = float(image[0].astype("f4") @ text[0].astype("f4"))
        each = replace(each, similarity=cosine, scores={"similarity": cosine})
        made.append(replace(each, image_embedding=image[0], text_embedding=text[0]))
    return made


@pytest.fixture
def folder(tmp_path, made):
    place = tmp_path / "dataset"
    spec = replace(world.SPEC, model=find_source(JUDGE).name, threshold=-1)
    job = Job(crawl=Crawl(crawl="a.wat.gz"), judge=JUDGE, output=Output(output=str(place)))
    job.store(place / "run" / "job.json")
    for number, some in enumerate((made[:4], made[4:])):
        world.write_these(place, some, shard=f"s-{number}", spec=spec)
    return place


@pytest.fixture
def images(tmp_path, made):
    """Number 2 shrunk, number 5 mirrored, which looks different, and another picture."""
    place = tmp_path / "evaluation"
    (place / "deep").mkdir(parents=True)
    shrunk, mirrored = (Picture.open(io.BytesIO(made[at].image.data)) for at in (2, 5))
    shrunk.resize((64, 64)).save(place / "deep" / "shrunk.JPG", quality=90)
    ImageOps.mirror(mirrored).save(place / "mirrored.webp", lossless=True)
    (place / "broken.png").write_bytes(made[0].image.data[:200])
    (place / "labels.txt").write_text("0 cat")
    return place


def test_what_looks_like_an_image_of_a_folder_is_left_out(folder, images, capsys):
    assert main(["dedup", str(folder), "--against", str(images)]) == 0
    out, notes = capsys.readouterr()
    assert "1 of 8 images look like one of the evaluation set." in out
    assert "2.jpg?a=1&b=2 is like " in out and "deep/shrunk.JPG" in out
    assert "1 image file of the evaluation set cannot be read" in notes and "broken.png" in notes
    assert left(folder) == list(range(8))
    assert main(["dedup", str(folder), "--against", str(images), "--apply"]) == 0
    assert left(folder) == [0, 1, 3, 4, 5, 6, 7] and list(verify(folder)) == []
    lost = [each.stats.dropped[DropReason.EVALUATION] for each in read_manifests(folder)]
    assert lost == [1, 0]


def test_images_are_read_from_tars_and_tables_and_it_says_what_it_took(
    folder, images, made, tmp_path, capsys
):
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
        tar.add(images, "test")
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    shrunk = (images / "deep" / "shrunk.JPG").read_bytes()
    rows = [
        {"bytes": shrunk, "path": "a"}, {"bytes": b"no picture", "path": "b"}, None,
        {"bytes": made[7].image.data, "path": "d"},
    ]  # fmt: skip
    pq.write_table(pa.table({"image": rows, "label": [1, 2, 3, 4]}), tmp_path / "parts/a.parquet")
    pq.write_table(pa.table({"label": ["cat"]}), tmp_path / "parts/labels.parquet")
    pq.write_table(pa.table({"png": [made[6].image.data]}), tmp_path / "parts/deep/b.parquet")
    for path, found, taken, bad in (
        (tmp_path / "set.tgz", {"2": ", test/deep/shrunk.JPG"}, "2 images", 1),
        (tmp_path / "parts", {"2": "row 0", "7": "row 3", "6": "b.parquet, row 0"}, "3 images", 1),
        (images / "deep" / "shrunk.JPG", {"2": "shrunk.JPG"}, "1 image", 0),
    ):
        assert main(["dedup", str(folder), "--against", str(path), "--json"]) == 0
        out, notes = capsys.readouterr()
        alike = {e["url"].split("/")[-1][0]: e["like"] for e in json.loads(out)["examples"]}
        assert alike.keys() == found.keys() and all(alike[k].endswith(found[k]) for k in found)
        assert f"Compared with {path}: {taken}." in notes
        assert ("1 image file of the evaluation set cannot be read" in notes) == bool(bad)


def test_what_means_the_same_is_left_out_too(folder, images, made, tmp_path, capsys):
    clip = load_clip(JUDGE)
    mirrored, _ = clip.embed([clip.prepare((images / "mirrored.webp").read_bytes())], [""])
    near = float(mirrored[0].astype("f4") @ made[5].image_embedding.astype("f4"))
    words = ["dedup", str(folder), "--against", str(images), "--semantic", f"{near - 0.001:.4f}"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    alike = {each["url"].split("/")[-1][0]: each["like"] for each in found["examples"]}
    assert alike["2"].endswith("shrunk.JPG") and alike["5"].endswith("mirrored.webp")

    np.save(tmp_path / "vectors.npy", 7 * np.stack([each.image_embedding for each in made[3:5]]))
    words = ["dedup", str(folder), "--against", str(tmp_path / "vectors.npy"), "--semantic", "1"]
    assert main([*words, "--apply"]) == 0
    assert "1.000: https://host3.example/3.jpg" in capsys.readouterr().out
    assert not {3, 4} & {*left(folder)} and list(verify(folder)) == []


def test_a_list_of_hashes_does_as_well_and_sets_add_up(folder, images, made, tmp_path, capsys):
    looks = int(with_looks(made[6].image).phash, 16)
    (tmp_path / "hashes").write_text(f"# of the test images\n{looks ^ 0b1011:016x}\n")
    words = ["dedup", str(folder), "--against", str(tmp_path / "hashes")]
    assert main([*words, "--distance", "2"]) == 0
    assert "0 of 8 images" in capsys.readouterr().out
    assert main([*words, "--against", str(images)]) == 0
    out = capsys.readouterr().out
    assert "2 of 8 images" in out and "3 bits: https://host6.example/6.jpg" in out


def test_another_dataset_is_a_set_too(folder, made, tmp_path, capsys):
    spec = replace(world.SPEC, model=find_source(JUDGE).name, threshold=-1)
    world.write_these(tmp_path / "other", [made[3], made[7]], shard="o-0", spec=spec)
    words = ["dedup", str(folder), "--against", str(tmp_path / "other")]
    for more in [], ["--semantic", "0.99"]:
        assert main([*words, *more]) == 0
        out = capsys.readouterr().out
        assert "2 of 8 images" in out and f"uid {made[3].image.candidate.uid}" in out
    foreign = replace(world.SPEC, threshold=-1)
    world.write_these(tmp_path / "foreign", made[3:4], shard="o-0", spec=foreign)
    words = ["dedup", str(folder), "--against", str(tmp_path / "foreign"), "--semantic", "0.9"]
    assert main(words) == 2
    assert "embeddings of ViT-tiny/none, which cannot be compared" in capsys.readouterr().err


def test_mistakes_are_said_in_one_sentence(folder, tmp_path, capsys):
    def given(name, data):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    (tmp_path / "none").mkdir()
    os.mkfifo(tmp_path / "none" / "pipe.jpg")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no picture")
    np.save(tmp_path / "narrow.npy", np.ones((3, 7), "f4"))
    np.save(tmp_path / "flat.npy", np.ones(7, "f4"))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    pq.write_table(pa.table({"label": ["cat"]}), tmp_path / "labels.parquet")
    meaning = ["--semantic", "0.9"]
    for path, more, sentence in (
        (str(tmp_path / "gone"), [], "there is no folder or file"),
        (str(tmp_path / "none" / "pipe.jpg"), [], "there is no folder or file"),
        ("s3://bucket/set", [], "there is no folder or file"),
        (given("images.zip", b"PK\x03\x04\xff"), [], "an evaluation set is a folder, tar or"),
        (given("cut.tar", b"no tar"), [], "cut.tar cannot be read"),
        (given("cut.parquet", b"PAR1"), [], "cannot be read as Parquet"),
        (given("one.png", b"no picture"), [], "none of the image files"),
        (str(tmp_path / "none"), [], "contains no image file"),
        ("", [], "give a folder or a file"),
        (f"{folder}/../dataset", [], "is the dataset itself"),
        (str(tmp_path / "bad"), [], "none of the image files"),
        (given("empty", b""), [], "lists no perceptual hashes"),
        (given("words", b"cat\n"), [], "line 1"),
        (given("hashes", b"00" * 8), meaning, "leave --semantic out"),
        (str(tmp_path / "narrow.npy"), [], "add --semantic"),
        (str(tmp_path / "narrow.npy"), meaning, "3 rows of 7 numbers"),
        (str(tmp_path / "flat.npy"), meaning, "cannot be read as embeddings"),
        (str(tmp_path / "objects.npy"), meaning, "cannot be read as embeddings"),
        (given("cut.npy", b"\x93NUMPY\x01\x00"), meaning, "cannot be read as embeddings"),
        (str(tmp_path / "gone.npy"), meaning, "there is no folder or file"),
        (str(tmp_path / "labels.parquet"), [], "has no column of images"),
    ):
        assert main(["dedup", str(folder), "--against", path, *more, "--apply"]) == 2, path
        errors = capsys.readouterr().err
        assert sentence in errors and errors.count("\n") == 1, errors
    assert left(folder) == list(range(8))


def test_a_model_that_is_not_here_is_named(folder, images, capsys):
    (folder / "run" / "job.json").unlink()
    assert main(["dedup", str(folder), "--against", str(images), "--semantic", "0.9"]) == 2
    errors = capsys.readouterr().err
    assert find_source(JUDGE).name.split("/")[0] in errors and errors.count("\n") == 1
