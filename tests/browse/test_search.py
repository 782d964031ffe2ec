"""Search by words and by a picture, with a real model: the demo's."""

from dataclasses import replace

import pytest

from cahlib import demo
from cahlib.core.config import Judge
from cahlib.model.clip import load_clip
from tests.world import judged as world

WORDS = ("a red apple", "an old ship", "clock", "two dogs")


@pytest.fixture(scope="module")
def clip():
    return load_clip(Judge(model=str(demo.MODEL), threshold=0.2))


def test_words_and_pictures_find_what_the_model_finds(serve, tmp_path, clip):
    pairs = [world.judged(number) for number in range(len(WORDS) + 1)]
    vectors = [
        *clip.embed_texts(WORDS),
        clip.embed([clip.prepare(pairs[-1].image.data)], [""])[0][0],
    ]
    made = [
        replace(pair, image_embedding=vector.astype("float16"))
        for pair, vector in zip(pairs, vectors, strict=True)
    ]
    world.write_these(tmp_path, made, spec=replace(world.SPEC, model=clip.name))
    page = serve(tmp_path, model=str(demo.MODEL))
    assert page.json("/api/about")["words"] == ""
    for row, words in enumerate(WORDS):
        first = page.json("/api/pairs", words=f" {words}  ")["items"][0]
        assert (first["row"], first["found"]) == (row, pytest.approx(1, abs=0.002))
    like = page.json("/api/picture", pairs[-1].image.data)["like"]
    assert page.rows(like=like)[0] == len(WORDS)
    assert page.rows(like=like, where=f"position < {len(WORDS)}", count=9)[0] != len(WORDS)


def test_another_model_than_the_datasets_is_refused(serve, tmp_path):
    world.write(tmp_path)
    page = serve(tmp_path, model=str(demo.MODEL))
    error = page.json("/api/pairs", words="a cat", status=400)["error"]
    assert "did not score this dataset" in error and world.SPEC.model in error
