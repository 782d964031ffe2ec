"""A machine that is gone left finished shards at a URL: another one goes on after them."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.dataset import description
from cahlib.dataset.checksummed_json import encode_checksummed
from cahlib.dataset.description import (
    DESCRIPTION_FILE,
    Description,
    commit_shards,
    describe_continued,
)
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import (
    encode_manifest,
    manifest_path,
    read_manifest,
    read_manifests,
)
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.upload import upload_shards
from cahlib.ledger.local import LocalLedger
from cahlib.model.score_names import score_columns
from cahlib.run.resume import find_faults, resume
from tests.world import judged as world
from tests.world import models


@pytest.fixture
def lost(tmp_path):
    """The URL of two shards that a lost machine brought there."""
    url = (tmp_path / "drive" / "dataset").as_uri()
    for number in (0, 1):
        manifest = world.write(tmp_path / "lost", first=30 * number, shard=f"s-{number}")
        upload_shards([manifest], tmp_path / "lost", url)
    return url


@pytest.fixture
def job(lost, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    return replace_settings(
        Job(),
        output=lost,
        model=model(tmp_path / "model", *world.SPEC.model.split("/")),
        threshold=world.SPEC.threshold,
        forms=",".join(world.SPEC.forms),
    )


def model(folder, name, weights):
    """The folder of a model that nobody loads."""
    folder.mkdir()
    (folder / f"{name}.json").write_text(json.dumps(models.CONFIG))
    (folder / f"{weights}.safetensors").touch()
    return str(folder)


def test_what_is_at_the_url_is_done_and_not_done_again(job, lost):
    ledger = LocalLedger(Path("ledger.sqlite"))
    shards = [world.parcel(f"s-{n}", images=1).shard for n in range(3)]
    ledger.add(shards)
    resume(job, ledger)
    resume(job, ledger)
    assert (ledger.counts().done, ledger.counts().todo) == (2, 1)
    assert ledger.lease() == shards[2] and ledger.lease() is None
    assert ledger.stats() == sum(
        (each.stats for each in read_manifests(lost)), type(ledger.stats())()
    )
    there = [each for each in world.some(30)[0] if each.reason is None]
    assert there and all(ledger.has_pair(each.image.candidate.uid) for each in there)
    assert {each.place for each in read_manifests(job.output.folder)} == {lost}
    assert list(verify(job.output.folder)) == [] == list(verify(lost))
    ledger.close()


def in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("lacks", "damage"),
    [
        ("shards/s-0.json", in_half),
        ("metadata/metadata_s-0.parquet", Path.unlink),
        ("images/s-0.tar", in_half),
    ],
)
def test_what_is_not_whole_at_the_url_is_left_and_told_of(job, lost, tmp_path, lacks, damage):
    """The machine was lost while it brought the shard, or its drive had not brought all."""
    damage(tmp_path / "drive" / "dataset" / lacks)
    ledger = LocalLedger(Path("ledger.sqlite"))
    ledger.add(world.parcel(f"s-{n}", images=1).shard for n in range(2))
    resume(job, ledger)
    assert (ledger.counts().done, ledger.counts().damaged) == (1, 1)
    assert ledger.lease() is None
    (sentence,) = find_faults(job, ledger)
    assert lacks in sentence and f"`cah repair {lost}` removes" in sentence
    ledger.close()


@pytest.mark.parametrize("described", ["yes", "no", "damaged", "never"])
@pytest.mark.parametrize("layout", [1, 2])
@pytest.mark.parametrize("place", ["folder", "url"])
def test_a_dataset_keeps_the_names_of_its_columns(tmp_path, monkeypatch, place, layout, described):
    folder, url = tmp_path / "here", (tmp_path / "there").as_uri()
    monkeypatch.chdir(tmp_path)  # where the folder of a URL's dataset is made
    job = replace_settings(Job(), output=url if place == "url" else str(folder))
    at = job.output.url or job.output.folder
    assert describe_continued(job).layout == 2
    scores = score_columns("ViT-tiny/none", ("similarity", "age minor"), layout=layout)
    made = tmp_path / "made"
    world.write(made, spec=dataclasses.replace(world.SPEC, scores=scores, layout=layout))
    commit_shards(made, Description(layout=layout), ["s-0"])
    shutil.copytree(made, tmp_path / "there" if place == "url" else folder, dirs_exist_ok=True)
    if described == "no":
        files_at(at).remove(DESCRIPTION_FILE)
    elif described == "damaged":
        files_at(at).write(DESCRIPTION_FILE, b"{")
    elif described == "never":  # nor in the manifest, as an older cahlib wrote it
        files_at(at).remove(DESCRIPTION_FILE)
        older = dataclasses.replace(read_manifest(at, "s-0"), layout=0)
        files_at(at).write(manifest_path("s-0"), encode_manifest(older))
    assert describe_continued(job).layout == layout
    assert list(verify(made)) == []


def test_a_description_of_an_older_cahlib_has_the_first_layout(tmp_path):
    contents = {"committed": ["s-0"], "digest": "0" * 64}
    (tmp_path / DESCRIPTION_FILE).write_bytes(encode_checksummed(contents))
    assert description.layout_of(tmp_path) == 1


@pytest.mark.parametrize(
    ("model", "score", "old", "new"),
    [
        ("ViT-B-32/openai", "similarity", "ViT-B-32/openai similarity",
         "clip_ViT-B-32_openai_similarity"),
        ("hf-hub:timm/ViT-B-16", "minor", "hf-hub:timm/ViT-B-16 minor",
         "clip_hf-hub_timm_ViT-B-16_minor"),
        ("ViT-L-14/öl 2", "my taste", "ViT-L-14/öl 2 my taste", "clip_ViT-L-14__l_2_my_taste"),
        ('a"b/c\td', "é,;'", 'a"b/c\td é,;\'', "clip_a_b_c_d_____"),
    ],
)  # fmt: skip
def test_columns_need_no_quotes(model, score, old, new):
    assert score_columns(model, [score], layout=1) == {score: old}
    assert score_columns(model, [score], layout=2) == {score: new}


def test_another_jobs_dataset_is_refused(job, tmp_path):
    ledger = LocalLedger(Path("ledger.sqlite"))
    other = model(tmp_path / "other", "ViT-small", "none")
    for setting in ({"threshold": 0.9}, {"forms": "images"}, {"model": other}):
        with pytest.raises(ConfigError, match="another model, threshold or forms"):
            resume(replace_settings(job, **setting), ledger)
    assert ledger.counts().total == 0
    resume(replace_settings(job, output="dataset"), ledger)
    assert ledger.counts().total == 0
    ledger.close()
