"""Heads score the stored embedding, drop by a threshold, and are refused where they do not fit."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cahlib.commands.cli import main
from cahlib.core.config import Judge
from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.model.clip import load_clip
from cahlib.model.heads import load_heads
from cahlib.model.pairs import score_names, score_pairs
from cahlib.model.safety import Safety
from tests.model.test_pairs import HARMLESS, image
from tests.world import models

WIDTH = 32
MODEL = SimpleNamespace(name="tiny/random", dim=WIDTH)
CARD = {"name": "taste", "backbone": "tiny/random", "width": WIDTH, "kind": "linear"}
LINEAR = {"weight": np.ones((1, WIDTH), np.float32), "bias": np.zeros(1, np.float32)}


def written(folder, tensors=LINEAR, **card):
    path = folder / "head.json"
    path.write_text(json.dumps(CARD | card))
    save_file(tensors, folder / "head.safetensors")
    return str(path)


def of_torch(*layers):
    """A head of torch's, and its tensors by torch's names."""
    made = torch.nn.Sequential(*layers)
    return made, {name: value.numpy() for name, value in made.state_dict().items()}


@pytest.fixture
def embeddings():
    found = np.random.default_rng(3).normal(size=(9, WIDTH)).astype(np.float32)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("activation", ["relu", "gelu", "none"])
def test_an_mlp_says_what_torch_says(tmp_path, embeddings, activation):
    between = {"relu": torch.nn.ReLU(), "gelu": torch.nn.GELU(), "none": torch.nn.Identity()}
    sizes = [WIDTH, *[8] * 10, 1]  # more than ten layers: their numbers are no texts
    layers = []
    for one, other in zip(sizes, sizes[1:], strict=False):
        layers += [torch.nn.Linear(one, other), between[activation]]
    made, tensors = of_torch(*layers[:-1], torch.nn.Sigmoid())
    path = written(tmp_path, tensors, kind="mlp", activation=activation, output="sigmoid")
    (head,) = load_heads([path], MODEL)
    with torch.no_grad():
        expected = made(torch.tensor(embeddings.astype(np.float32)))[:, 0].numpy()
    np.testing.assert_allclose(head.scores(embeddings), expected, atol=1e-3)


def test_scores_are_kept_and_the_wrong_side_of_the_threshold_goes(tmp_path):
    tiny = load_clip(Judge(model=str(models.write(tmp_path / "model")), threshold=0))
    tensors = {"weight": np.eye(1, WIDTH, dtype=np.float32) * 10, "bias": np.ones(1, np.float32)}
    images = [image(number) for number in range(12)]
    safety, options = Safety(HARMLESS, tiny), Judge(model="any", threshold=-1, batch=5)

    def judged(drop, threshold):
        path = written(tmp_path, tensors, drop=drop, threshold=threshold)
        stats, found = Stats(), load_heads([path], tiny)
        assert score_names(safety, found)[-1] == "taste"
        every = score_pairs(images, tiny, safety, judge=options, stats=stats, heads=found)
        rows = [(each.scores["taste"], each.reason, each) for each in every]
        assert stats.unaccounted(Stage.JUDGE) == 0
        return rows, stats

    rows, stats = judged(None, None)
    assert not stats.dropped
    for score, _, each in rows:  # from what is stored, anybody gets the same
        assert score == pytest.approx(10 * float(each.image_embedding[0]) + 1, abs=1e-5)
    middle = sorted(score for score, _, _ in rows)[6]
    for drop, goes in (("below", lambda s: s < middle), ("above", lambda s: s > middle)):
        rows, stats = judged(drop, middle)
        assert 0 < stats.dropped[DropReason.HEAD_SCORE] < len(images)
        assert all((reason is DropReason.HEAD_SCORE) == goes(score) for score, reason, _ in rows)


@pytest.mark.parametrize(
    ("tensors", "card", "sentence"),
    [
        (LINEAR, {"backbone": "ViT-L-14/openai"}, "is for embeddings of ViT-L-14/openai, and"),
        (LINEAR, {"width": 768}, "expects embeddings of 768 numbers, and those of tiny/random"),
        ({"weight": np.ones((1, 768), np.float32)}, {}, r"\(1, 768\) for an input of 32 numbers"),
        ({"weight": np.ones((3, WIDTH), np.float32)}, {}, "returns 3 numbers instead of one"),
        ({"weight": np.full((1, WIDTH), np.nan)}, {}, "contains NaN or infinity"),
        (LINEAR | {"bias": np.ones(2, np.float32)}, {}, "has a layer of shape"),
        (LINEAR | {"extra": np.ones(2)}, {}, "holds the tensor extra"),
        ({"odd": np.ones(2)}, {}, "holds no weight"),
        ({"0.weight": np.eye(WIDTH), "1.weight": np.eye(WIDTH)}, {}, "a linear head has one"),
        (LINEAR, {"kind": "forest"}, "does not describe a head: Invalid enum value 'forest'"),
        (LINEAR, {"treshold": 3}, "does not describe a head: .*treshold"),
        (LINEAR, {"threshold": 3}, 'give both a threshold and "drop"'),
        (LINEAR, {"name": "a\nb"}, "give a name of letters"),
        (LINEAR, {"name": "similarity"}, "another score is called 'similarity' already"),
        (LINEAR, {"name": "minor"}, "another score is called 'minor' already"),
    ],
)  # fmt: skip
def test_a_head_that_does_not_fit_is_refused_with_a_sentence(tmp_path, tensors, card, sentence):
    with pytest.raises(ConfigError, match=sentence) as told:
        load_heads([written(tmp_path, tensors, **card)], MODEL)
    assert str(told.value).count("\n") == 0


def test_files_that_are_no_heads_are_refused(tmp_path):
    path = written(tmp_path)
    with pytest.raises(ConfigError, match="another score is called 'taste' already"):
        load_heads([path, path], MODEL)
    for data, sentence in ((b"no", "is not a suitable safetensors file"), (None, "cannot be read")):
        file = tmp_path / "head.safetensors"
        file.write_bytes(data) if data else file.unlink()
        with pytest.raises(ConfigError, match=sentence):
            load_heads([path], MODEL)


def test_a_run_refuses_a_bad_head_before_it_begins(tmp_path, capsys):
    (tmp_path / "bad.json").write_text("{}")
    for name, sentence in (("bad.json", "does not describe a head"), ("none.json", "cannot be")):
        arguments = ["--contact", "a@example.org", "--output", str(tmp_path / "out")]
        assert main(["run", *arguments, "--heads", str(tmp_path / name)]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
