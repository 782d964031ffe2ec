"""A run goes on whatever becomes of those who watch it."""

import dataclasses
import shutil
import threading

import pyarrow.parquet as pq

from cahlib.core.config import Judge, replace_settings
from cahlib.core.rates import RateRecorder, rates_for
from cahlib.core.records import Stage
from cahlib.dataset.description import read_description, write_description
from cahlib.dataset.maintain.numbering import unnumber_tars
from cahlib.dataset.maintain.verify import verify
from cahlib.dataset.manifest import read_manifests, tar_path
from cahlib.dataset.show.summary import summary_lines
from cahlib.dataset.write import shard_writer
from cahlib.dataset.write.columns import make_row
from cahlib.model.clip import load_clip
from cahlib.model.scorer import load_scorer
from cahlib.run.pipeline import run
from cahlib.run.score_again import score_dataset
from tests.world import models, small
from tests.world.pictures import picture


def test_a_listener_that_fails_ends_nothing_and_the_time_limit_is_kept(tmp_path):
    crawl = small.write(tmp_path / "crawl", files=300, links=40)
    told = []

    def closed_terminal(snapshot):
        told.append(snapshot.finished)
        raise BrokenPipeError

    with small.Pictures() as web:
        job = replace_settings(small.job(crawl, tmp_path / "set", web), hours=3 / 3600)
        outcome = run(job, closed_terminal, tick=0.1)
    assert len(told) > 2 and told[-1]
    assert outcome.shards.open and not outcome.shards.failed
    assert (tmp_path / "set" / "report.html").exists()
    assert outcome.shards.done == 0 or list(verify(tmp_path / "set")) == []


def test_a_shard_that_cannot_be_written_costs_no_more_than_itself(tmp_path, monkeypatch):
    crawl = small.write(tmp_path / "crawl", files=2, links=3)
    row = make_row

    def failing(judged, **how):
        if "/1-0-" in judged.image.candidate.url:
            raise ZeroDivisionError
        return row(judged, **how)

    monkeypatch.setattr(shard_writer, "make_row", failing)
    with small.Pictures() as web:
        outcome = run(replace_settings(small.job(crawl, tmp_path / "set", web), attempts=2))
    assert (outcome.shards.done, outcome.shards.failed) == (3, 1)
    assert list(verify(tmp_path / "set")) == []


def test_a_ctrl_c_does_not_reach_a_model_that_is_being_loaded(tmp_path, monkeypatch):
    """Libraries would take it for a fault of the model."""
    crawl = small.write(tmp_path / "crawl", files=1, links=1)
    loading = []

    def load(judge):
        loading.append(threading.current_thread())
        return load_scorer(judge)

    monkeypatch.setattr("cahlib.run.pipeline.load_scorer", load)
    with small.Pictures() as web:
        run(small.job(crawl, tmp_path / "set", web))
    assert loading and threading.main_thread() not in loading


def test_a_run_measures_its_shards_for_the_next_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    crawl = small.write(tmp_path / "crawl", files=1, links=3)
    with small.Pictures() as web:
        job = small.job(crawl, tmp_path / "set", web)
        monkeypatch.setattr(
            "cahlib.run.pipeline.RateRecorder",
            lambda job: RateRecorder(replace_settings(job, replay="")),
        )
        outcome = run(job, scraping=small.scraping)
    seen, stats = rates_for(job), outcome.stats
    assert seen.links == stats.done(Stage.FETCH) / outcome.shards.done
    assert seen.pairs == (stats.left[Stage.JUDGE] / outcome.shards.done,) * 2
    assert seen.images == stats.entered[Stage.JUDGE] / stats.done(Stage.FETCH)
    assert 0 < seen.core != 14 and seen.model > 0 and "last runs" in seen.source


def test_a_thumb_is_scored_in_place_of_its_image(tmp_path):
    crawl = small.write(tmp_path / "crawl", files=1, links=3)
    with small.Pictures() as web:
        job = replace_settings(small.job(crawl, tmp_path / "set", web), thumbs=64)
        run(job)
    rows = pq.read_table(tmp_path / "set" / "metadata").to_pylist()
    clip = load_clip(job.judge)
    pixels = [clip.prepare(picture())] * len(rows)
    of_images, of_texts = clip.embed(pixels, [row["TEXT"] for row in rows])
    similarities = (of_images * of_texts).sum(axis=1)
    apart = [abs(row["similarity"] - each) for row, each in zip(rows, similarities, strict=True)]
    assert 1e-6 < max(apart) < 0.02


def test_further_models_score_in_the_same_pass(tmp_path):
    crawl = small.write(tmp_path / "crawl", files=1, links=3)
    second, third = (
        str(models.write(tmp_path / name, name=name, seed=seed))
        for seed, name in ((1, "second"), (2, "third"))
    )
    with small.Pictures() as web:
        job = small.job(crawl, tmp_path / "set", web)
        run(
            replace_settings(job, also=(second,), cascade=(f"{third}:-1",)), scraping=small.scraping
        )
    table = pq.read_table(tmp_path / "set" / "metadata")
    for name in ("second", "third"):
        column = table[f"clip_{name}_random_similarity"].to_pylist()
        assert len(column) > 0 and all(-1 <= each <= 1 for each in column)
    assert list(verify(tmp_path / "set")) == []
    # it need not be scored again, but may be given its vectors
    judge = Judge(model=second, threshold=-1)
    assert list(score_dataset(tmp_path / "set", judge)) == []
    assert list(score_dataset(tmp_path / "set", judge, embeddings=True)) != []
    assert pq.read_table(tmp_path / "set" / "metadata").equals(table)
    assert list(verify(tmp_path / "set")) == []


def test_parcels_that_a_kill_left_behind_go_at_the_next_launch(tmp_path, monkeypatch):
    """Killed between the ledger's word that a shard is done and the removal of its parcel."""
    crawl = small.write(tmp_path / "crawl", files=1, links=3)
    left = tmp_path / "set" / "run" / "parcels"
    with small.Pictures() as web:
        job = replace_settings(small.job(crawl, tmp_path / "set", web), shards=1)
        with monkeypatch.context() as killed:
            killed.setattr("cahlib.run.pipeline.parcels.delete_parcel", lambda folder, shard: None)
            run(job, scraping=small.scraping)
        assert {path.suffix for path in left.iterdir()} == {".tar", ".json"}
        (left / "s-0.0123abcd.part").touch()
        run(job, scraping=small.scraping)
    assert not list(left.iterdir())


def test_the_tars_of_a_run_have_numbers_and_those_at_a_url_the_names_of_shards(
    tmp_path, monkeypatch
):
    crawl = small.write(tmp_path / "crawl", files=2, links=3)
    folder = tmp_path / "set"
    monkeypatch.chdir(tmp_path / "crawl")  # a URL's dataset has its folder here

    def tars():
        assert list(verify(folder)) == []
        return sorted(path.name for path in (folder / "images").glob("*.tar"))

    with small.Pictures() as web:
        job = small.job(crawl, folder, web)
        run(replace_settings(job, shards=1), scraping=small.scraping)
        assert tars() == ["00000.tar"]
        run(replace_settings(job, shards=3), scraping=small.scraping)
        assert tars() == ["00000.tar", "00001.tar", "00002.tar"]
        ids = sorted(each.shard.id for each in read_manifests(folder))
        url = (tmp_path / "there" / "set").as_uri()
        job = replace_settings(job, output=url, shards=3)
        folder = shutil.move(folder, job.output.folder)
        shutil.rmtree(folder / "run")  # which knows that it was another folder's
        run(job, scraping=small.scraping)
    assert tars() == [f"{id}.tar" for id in ids]
    assert {tar_path(each) for each in read_manifests(url)} == {f"images/{id}.tar" for id in ids}
    assert list(verify(url)) == []


def test_a_run_goes_on_with_a_dataset_of_an_older_cahlib_in_its_layout(tmp_path):
    crawl = small.write(tmp_path / "crawl", files=1, links=3)
    folder = tmp_path / "set"
    with small.Pictures() as web:
        job = small.job(crawl, folder, web)
        run(replace_settings(job, shards=1), scraping=small.scraping)
        unnumber_tars(folder)
        said = read_description(folder)
        assert said.layout == 2
        write_description(folder, dataclasses.replace(said, layout=1))
        run(job, scraping=small.scraping)
    first, second = (pq.read_schema(path) for path in sorted(folder.glob("metadata/*.parquet")))
    assert [name for name in first.names if name.endswith("_similarity")]
    assert [name for name in second.names if name.endswith(" similarity")]
    assert not [name for name in second.names if name.startswith("clip_")]
    assert read_description(folder).layout == 1
    ids = [each.shard.id for each in read_manifests(folder)]
    assert sorted(path.stem for path in folder.glob("images/*.tar")) == ids


def test_a_file_that_is_cut_off_is_told_of_wherever_the_dataset_is_described(tmp_path):
    crawl = small.write(tmp_path / "crawl", files=1, links=30)
    path = tmp_path / "crawl" / "00000.warc.wat.gz"
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 4])
    with small.Pictures() as web:
        outcome = run(small.job(crawl, tmp_path / "set", web), scraping=small.scraping)
    (said,) = outcome.warnings
    assert said.startswith(f"{path.name} is cut off at byte {path.stat().st_size:,}; ")
    assert said in (tmp_path / "set" / "report.html").read_text()
    assert any(said in line for line in summary_lines(tmp_path / "set"))
    assert list(verify(tmp_path / "set")) == []
