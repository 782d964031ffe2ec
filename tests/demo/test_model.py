"""The tiny CLIP is a real open_clip model and knows what it claims to know."""

import io
import math

import pytest
from PIL import Image

from cahlib.demo import MODEL, captions, world

pytest.importorskip("open_clip", reason="the model needs: pip install 'cahlib[gpu]'")
np = pytest.importorskip("numpy")

from cahlib.demo import evaluate  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return evaluate.Model()


@pytest.fixture(scope="module")
def shown():
    return world.scenes()


@pytest.fixture(scope="module")
def images(model, shown):
    return model.images([Image.open(io.BytesIO(scene.data)) for scene in shown])


def test_it_is_small():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 6_000_000
    assert world.SCENES.stat().st_size < 8_000_000


def test_it_knows_things_that_it_never_saw_drawn_so(model, shown, images):
    found = evaluate.figures(images @ model.texts([scene.name for scene in shown]).T)
    assert found.auc >= 0.96
    assert found.top1 >= 0.6


def test_it_finds_the_name_in_a_caption(model, shown, images):
    names = [scene.name for scene in shown]
    found = evaluate.figures(images @ model.texts(captions.web(names)).T)
    assert found.auc >= 0.95
    assert found.kept >= 0.8
    assert found.passed <= 0.03


def test_words_are_split_as_by_the_stock_tokenizer(model, shown):
    from open_clip.tokenizer import SimpleTokenizer

    stock = SimpleTokenizer()
    for scene in shown:
        own = [model.tokenizer.decoder[n] for n in model.tokenizer.encode(scene.name)]
        assert own == [stock.decoder[n] for n in stock.encode(scene.name)]


def test_figures_of_a_perfect_and_a_blind_model():
    n = 200
    perfect = evaluate.figures(np.eye(n, dtype=np.float32))
    assert (perfect.auc, perfect.top1, perfect.kept, perfect.passed) == (1, 1, 1, 0)
    blind = evaluate.figures(np.random.default_rng(1).uniform(-1, 1, (n, n)))
    assert math.isclose(blind.auc, 0.5, abs_tol=0.1)
    assert blind.top1 < 0.1


def test_the_training_captions_hold_the_name():
    from random import Random

    random = Random(1)
    made = [captions.training_caption("red heart", ["noise"], random) for _ in range(500)]
    assert all("red heart" in caption for caption in made)
    assert len(set(made)) > 200
