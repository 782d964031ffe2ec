"""Further models score what is kept so far; a cascade keeps what choosing afterwards would keep."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open_clip", reason="judging needs: pip install 'cahlib[gpu]'")

from cahlib.core.config import Job, Judge
from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.model.clip import Clip
from cahlib.model.further import FurtherModel, check_further
from cahlib.model.scorer import check_model_files, load_scorer
from tests.model.test_pairs import HARMLESS, image
from tests.world import models

FIRST, SECOND, THIRD = (f"clip_{name}_random_similarity" for name in ("tiny", "second", "third"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return [
        str(models.write(place / name, name=name, seed=seed))
        for seed, name in enumerate(("tiny", "second", "third"))
    ]


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """The first model's settings, with prompts that find nothing."""
    path = tmp_path_factory.mktemp("safety") / "safety.json"
    path.write_text(json.dumps(HARMLESS))
    return Judge(model=folders[0], threshold=-1, safety=str(path))


@pytest.fixture(scope="module")
def pictures():
    return [image(number) for number in range(23)]


@pytest.fixture(scope="module")
def everything(run, folders, pictures):
    """All pictures scored by all three models."""
    return judged(replace(run, also=tuple(folders[1:])), pictures)[0]


def judged(judge, pictures):
    """What comes out, and the columns of its scores."""
    loaded, stats = load_scorer(judge), Stats()
    found = list(loaded.judged(pictures, judge, stats))
    assert stats.unaccounted(Stage.JUDGE) == 0
    assert stats.left[Stage.JUDGE] == sum(each.reason is None for each in found)
    assert [each.image for each in found] == pictures
    return found, loaded.columns(layout=2)


def scores(found, name):
    return np.array([each.scores[name] for each in found])


def test_each_model_s_score_is_plain_open_clip_s(everything, folders, pictures):
    data, texts = zip(*((each.data, each.candidate.text) for each in pictures), strict=True)
    for folder, name, score in zip(
        folders, ("tiny", "second", "third"), ("similarity", SECOND, THIRD), strict=True
    ):
        both = models.plain_embeddings(models.plain(Path(folder), name=name), data, texts)
        wanted = (both[0] * both[1]).sum(axis=1)
        assert np.abs(scores(everything, score) - wanted).max() < 1e-3


@pytest.mark.parametrize("batch", [3, 256])
def test_a_cascade_keeps_what_choosing_afterwards_keeps(everything, run, folders, pictures, batch):
    names = ("similarity", SECOND, THIRD)
    least = [float(np.quantile(scores(everything, name), 0.3)) + 1e-6 for name in names]
    cascade = tuple(
        f"{folder}:{bound!r}" for folder, bound in zip(folders[1:], least[1:], strict=True)
    )
    judge = replace(run, threshold=least[0], cascade=cascade, batch=batch)
    found, columns = judged(judge, pictures)
    chosen = np.all([scores(everything, n) >= b for n, b in zip(names, least, strict=True)], axis=0)
    kept = [each.reason is None for each in found]
    assert kept == chosen.tolist() and 0 < sum(kept) < len(kept)
    assert {each.reason for each in found} == {None, DropReason.DISSIMILAR}
    assert {*columns.values()} >= {FIRST, SECOND, THIRD}
    for each, before in zip(found, everything, strict=True):
        for name in each.scores:
            assert each.scores[name] == pytest.approx(before.scores[name], abs=1e-5)
        assert (THIRD in each.scores) >= (each.reason is None)


def test_the_costly_model_sees_only_what_the_cheap_one_left(run, folders, pictures, monkeypatch):
    seen, embed = {}, Clip.embed

    def counted(self, pixels, texts):
        seen[self.name] = seen.get(self.name, 0) + len(texts)
        return embed(self, pixels, texts)

    monkeypatch.setattr(Clip, "embed", counted)
    judge = replace(run, cascade=(f"{folders[1]}:1", f"{folders[2]}:-1"))
    found, _ = judged(judge, pictures)
    assert seen == {"tiny/random": len(pictures), "second/random": len(pictures)}
    assert not any(each.reason is None for each in found)


def test_an_image_that_a_further_model_cannot_read_has_no_score(
    run, folders, pictures, monkeypatch
):
    lost = {pictures[0].data, pictures[7].data, pictures[-1].data}
    prepare = Clip.prepare

    def refuses(self, data, thumb=b""):
        if self.name == "second/random" and data in lost:
            return None
        return prepare(self, data, thumb)

    monkeypatch.setattr(Clip, "prepare", refuses)
    for setting, reason in (("also", None), ("cascade", DropReason.UNREADABLE)):
        value = folders[1] if setting == "also" else f"{folders[1]}:-1"
        judge = replace(run, **{setting: (value,)})
        for each in judged(judge, pictures)[0]:
            without = each.image.data in lost
            assert (SECOND not in each.scores) == without
            assert each.reason == (reason if without else None)


def test_order_is_kept_whatever_is_dropped_before(folders, pictures, everything):
    found = [
        replace(each, reason=DropReason.MINOR if number % 3 == 1 else None)
        for number, each in enumerate(everything)
    ]
    stats = Stats()
    model = FurtherModel(
        clip=load_scorer(Judge(model=folders[1], threshold=-1)).clip, threshold=None
    )
    after = list(model.scored(found, 4, stats))
    assert [each.image for each in after] == pictures and not stats.dropped
    assert [each.reason for each in after] == [each.reason for each in found]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"cascade": ("quality",)}, "cascade: 'quality' is not valid; give a model and its"),
        ({"cascade": ("quality:much",)}, "cascade: 'quality:much' is not valid"),
        ({"cascade": ("quality:nan",)}, "cascade: 'quality:nan' is not valid"),
        ({"cascade": ("quality:2",)}, "cascade: 'quality:2' is not valid"),
        ({"cascade": (":0.3",)}, "cascade: ':0.3' is not valid"),
        ({"also": ("best",)}, "also: 'best' is neither a preset"),
        ({"also": ("ViT-L-14/",)}, "also: 'ViT-L-14/' is neither a preset"),
        ({"also": ("ViT-L-15/openai",)}, "also: 'ViT-L-15' is neither a folder"),
        ({"also": ("/no/such/folder",)}, "also: '/no/such/folder' is neither a preset"),
        ({"cascade": ("~/nosuch:0.2",)}, "cascade: '~/nosuch' is neither a preset"),
        ({"also": (f"{Path(__file__).parent}/gone",)}, "also: '/"),
        ({"also": ("laion5b",)}, "also: ViT-B-32/openai scores already; name each model once."),
        ({"also": ("quality", "quality")}, "also: ViT-L-14-quickgelu/dfn2b scores already"),
        ({"cascade": ("quality:0.2",), "also": ("quality",)}, "also: ViT-L-14-quickgelu/dfn2b sc"),
        ({"also": ("quality",), "no_judge": True}, "also: no_judge uses no model"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(values, sentence):
    with pytest.raises(ConfigError) as refused:
        check_model_files(Judge(**values))
    assert str(refused.value).startswith(sentence)


def test_names_are_those_that_users_write():
    check_further(Judge(also=("quality", "ViT-L-14/openai"), cascade=("datacomp:0.2",)))


def test_a_folder_with_a_threshold_is_compared_by_its_content(folders, tmp_path):
    copy = models.write(tmp_path / "elsewhere" / "second", name="second", seed=1)
    marks = [
        Job.from_values({"cascade": f"{folder}:{least}"}).fingerprint()["cascade"]
        for folder, least in ((folders[1], 0.3), (copy, 0.3), (folders[1], 0.2), (folders[2], 0.3))
    ]
    assert marks[0] == marks[1] and marks[0] != marks[2] and marks[0] != marks[3]
    assert str(tmp_path) not in str(marks)
