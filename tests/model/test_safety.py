"""The safety rules decide as they are written down, and a bad file of categories says so."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.errors import ConfigError
from cahlib.core.records import DropReason
from cahlib.model.safety import Safety

SETS = {
    "content": {"neutral": ["toy", "logo", "film"], "sexual": ["porn", "nude"]},
    "age": {"minor": ["teen", "baby"], "adult": ["woman", "man"], "words": ["teen", "Kid"]},
    "animal": {"thing": ["wall", "bed"], "person": ["human"], "animal": ["cat", "dog"]},
}
PROMPTS = [
    prompt
    for marks in SETS.values()
    for mark, prompts in marks.items()
    if mark != "words"
    for prompt in prompts
]


class Axes:
    """A model in which every prompt has a direction of its own."""

    name = "axes/none"

    def embed_texts(self, texts):
        return np.eye(len(PROMPTS), dtype=np.float32)[[PROMPTS.index(text) for text in texts]]


def shown(*best):
    """An image that is most like these prompts, the first most of all."""
    image = np.zeros(len(PROMPTS), dtype=np.float32)
    for rank, prompt in enumerate(best):
        image[PROMPTS.index(prompt)] = 1 - rank / 10
    return image / np.linalg.norm(image)


def verdict(*best, text="a photo", sets=SETS):
    return Safety(sets, Axes()).judge(np.stack([shown(*best)]), [text])[0]


@pytest.mark.parametrize(
    ("best", "label"),
    [
        (("toy", "logo", "porn"), "UNLIKELY"),
        (("toy", "porn", "nude"), "UNSURE"),
        (("porn", "toy", "nude"), "UNSURE"),
        (("nude", "porn", "toy"), "NSFW"),
    ],
)
def test_the_best_two_prompts_make_the_label(best, label):
    assert verdict(*best, "woman", "man", "wall").nsfw == label


def test_the_first_sexual_prompt_counts_as_sexual():
    assert verdict("porn", "nude").nsfw == "NSFW"


@pytest.mark.parametrize("minor", [("teen", "woman"), ("man", "baby"), ("teen", "baby")])
def test_a_minor_in_unsafe_content_is_dropped(minor):
    assert verdict("porn", "toy", *minor, "wall").reason is DropReason.MINOR
    assert verdict("toy", "logo", *minor, "wall").reason is None


@pytest.mark.parametrize(
    "text", ["a teen", "Teenager", "thirteen", "KIDS playing", "schoolkid", "preteens"]
)
def test_a_caption_can_name_a_minor(text):
    assert verdict("porn", "toy", "woman", "man", "wall", text=text).reason is DropReason.MINOR
    assert verdict("toy", "logo", "woman", "man", "wall", text=text).reason is None


def test_only_the_best_animal_counts():
    adults = ("woman", "man")
    assert verdict("porn", "nude", *adults, "dog", "wall").reason is DropReason.ANIMAL
    assert verdict("porn", "nude", *adults, "wall", "dog").reason is None
    assert verdict("toy", "logo", *adults, "dog", "wall").reason is None


def test_a_minor_comes_before_an_animal():
    assert verdict("porn", "nude", "teen", "man", "dog").reason is DropReason.MINOR


def test_a_set_may_be_left_out():
    sets = {"content": SETS["content"]}
    found = verdict("porn", "nude", "teen", "dog", text="a kid", sets=sets)
    assert (found.nsfw, found.reason) == ("NSFW", None)
    assert list(found.scores) == ["sexual"]


def test_every_score_is_named_by_its_model():
    safety = Safety(SETS, Axes())
    found = safety.judge(np.stack([shown("porn", "toy")]), ["a photo"])[0]
    assert tuple(found.scores) == safety.scores
    assert safety.scores == ("sexual", "minor", "animal")
    assert found.scores["sexual"] > 0.99
    assert found.scores["minor"] == pytest.approx(2 / 4)
    assert found.scores["animal"] == pytest.approx(2 / 5)


@given(st.data())
def test_a_batch_is_judged_as_its_images_one_by_one(data):
    seed = data.draw(st.integers(0, 2**32))
    texts = data.draw(st.lists(st.sampled_from(["a kid", "a man", "TEEN", ""]), min_size=1))
    images = np.random.default_rng(seed).normal(size=(len(texts), len(PROMPTS)))
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    for image, text, found in zip(
        images, texts, Safety(SETS, Axes()).judge(images, texts), strict=True
    ):
        score = dict(zip(PROMPTS, image.tolist(), strict=True))

        def best(name, score=score):
            marks = {p: m for m, ps in SETS[name].items() if m != "words" for p in ps}
            return [marks[p] for p in sorted(marks, key=lambda p: -score[p])[:2]]

        sexual = best("content").count("sexual")
        assert found.nsfw == ["UNLIKELY", "UNSURE", "NSFW"][sexual]
        if sexual and ("minor" in best("age") or "kid" in text or "TEEN" in text):
            assert found.reason is DropReason.MINOR
        elif sexual and best("animal")[0] == "animal":
            assert found.reason is DropReason.ANIMAL
        else:
            assert found.reason is None
        assert all(0 <= value <= 1 for value in found.scores.values())


class Anything:
    """A model that takes any text."""

    name = "any/none"

    def embed_texts(self, texts):
        vectors = np.random.default_rng(0).normal(size=(len(texts), 16)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_built_in_rules_are_complete():
    assert len(Safety.load("", Anything()).scores) == 3


def test_a_users_file_replaces_the_built_in_one(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"about": "mine", **SETS}), encoding="utf-8")
    found = Safety.load(str(file), Axes()).judge(np.stack([shown("porn", "nude")]), ["x"])[0]
    assert found.nsfw == "NSFW"


def without(*path):
    sets = copy.deepcopy(SETS)
    part = sets
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    return sets


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], 'the set "content" is missing'),
        (without("content"), 'the set "content" is missing'),
        (without("content", "sexual"), 'the set "content" must hold the lists neutral, sexual'),
        (without("age", "minor"), 'the set "age" must hold the lists minor, adult, words'),
        ({**SETS, "violence": {}}, '"violence" is not a set; the sets are content, age, animal'),
        ({**SETS, "age": ["teen"]}, 'the set "age" must hold'),
        ({**SETS, "content": {**SETS["content"], "sexual": "porn"}}, "must be a list of texts"),
        ({**SETS, "content": {**SETS["content"], "sexual": [""]}}, "must be a list of texts"),
        ({**SETS, "content": {**SETS["content"], "gore": []}}, "neutral, sexual and nothing else"),
        ({"content": {"neutral": ["a"], "sexual": []}}, "needs two prompts at least"),
        ({"content": {"neutral": ["a"], "sexual": ["a"]}}, 'the prompt "a" is in the set'),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path, content, sentence):
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        Safety.load(str(file), Anything())
    assert str(error.value).startswith(f"safety: in {file}, ")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(None, "cannot be read"), (b"{", "is not valid JSON"), (b"\xff\xfe", "is not valid JSON")],
)
def test_a_file_that_cannot_be_read(tmp_path, data, sentence):
    file = tmp_path / "bad.json"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConfigError, match=sentence):
        Safety.load(str(file), Anything())
