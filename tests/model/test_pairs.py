"""Images become pairs in their order, none is lost uncounted, and memory stays flat."""

import hashlib
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("open_clip", reason="judging needs: pip install 'cahlib[gpu]'")

from cahlib.core.config import Judge
from cahlib.core.errors import ShardError
from cahlib.core.records import Candidate, DropReason, Image, Stage, Stats
from cahlib.model.clip import load_clip
from cahlib.model.pairs import score_names, score_pairs
from cahlib.model.safety import Safety
from tests.world import models

HARMLESS = {"content": {"neutral": ["a", "b"], "sexual": []}}
ALL_MINORS = {
    "content": {"neutral": [], "sexual": ["a", "b"]},
    "age": {"minor": ["c", "d"], "adult": []},
}
ALL_ANIMALS = {
    "content": {"neutral": [], "sexual": ["a", "b"]},
    "animal": {"thing": [], "person": [], "animal": ["c", "d"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=[1, 2], ids=["one device", "two devices"])
def tiny(folder, request):
    return load_clip(Judge(model=str(folder), threshold=0), devices=["cpu"] * request.param)


def image(number, *, data=None, text=None):
    text = text or f"picture {number}"
    data = models.picture(number) if data is None else data
    candidate = Candidate(
        uid=hashlib.md5(text.encode()).hexdigest(),
        position=number,
        url=f"https://example.com/{number}.png",
        text=text,
        raw_text=None,
        page="https://example.com/",
        licence="?",
        language="en",
        reliable=True,
        source="alt",
    )
    return Image(
        candidate=candidate,
        data=data,
        format="png",
        width=90,
        height=70,
        original_width=90,
        original_height=70,
        md5=hashlib.md5(data[:5000]).hexdigest(),
        sha1=hashlib.sha1(data[:5000]).hexdigest(),
        sha256=hashlib.sha256(data[:5000]).hexdigest(),
        robots="",
    )


def judge(images, model, *, threshold=-1.0, batch=256, sets=HARMLESS):
    """What comes out, and the stats."""
    stats = Stats()
    options = Judge(model="any", threshold=threshold, batch=batch)
    found = list(score_pairs(images, model, Safety(sets, model), judge=options, stats=stats))
    assert stats.unaccounted(Stage.JUDGE) == 0
    return found, stats


def test_pairs_equal_a_plain_computation(folder, tiny):
    images = [image(number) for number in range(12)]
    expected = models.plain_embeddings(
        models.plain(folder), [i.data for i in images], [i.candidate.text for i in images]
    )
    found, _ = judge(images, tiny, batch=5)
    similarity = (expected[0] * expected[1]).sum(axis=1)
    np.testing.assert_allclose([each.similarity for each in found], similarity, atol=1e-6)
    np.testing.assert_allclose([each.image_embedding for each in found], expected[0], atol=1e-3)
    np.testing.assert_allclose([each.text_embedding for each in found], expected[1], atol=1e-3)
    assert {each.image_embedding.dtype for each in found} == {np.dtype("float16")}


def test_what_is_not_similar_enough_is_dropped_but_shown(tiny):
    images = [image(number) for number in range(9)]
    values = [each.similarity for each in judge(images, tiny)[0]]
    threshold = sorted(values)[5]
    found, stats = judge(images, tiny, threshold=threshold)
    assert [each.image for each in found] == images
    assert [each.reason for each in found] == [
        None if value >= threshold else DropReason.DISSIMILAR for value in values
    ]
    assert (stats.left[Stage.JUDGE], stats.dropped[DropReason.DISSIMILAR]) == (4, 5)


@pytest.mark.parametrize(
    ("sets", "reason"), [(ALL_MINORS, DropReason.MINOR), (ALL_ANIMALS, DropReason.ANIMAL)]
)
def test_what_is_not_safe_is_dropped_and_says_so_even_if_it_is_dissimilar_too(tiny, sets, reason):
    found, stats = judge([image(1), image(2)], tiny, sets=sets)
    assert [(each.nsfw, each.reason) for each in found] == [("NSFW", reason)] * 2
    assert stats.dropped[reason] == 2
    found, stats = judge([image(1)], tiny, sets=sets, threshold=1.0)
    assert (found[0].nsfw, found[0].reason) == ("NSFW", reason)


def test_every_score_is_kept(tiny):
    safety = Safety.load("", tiny)
    names = ("similarity", "sexual", "minor", "animal")
    assert score_names(safety) == names
    options = Judge(model="any", threshold=-1)
    for each in score_pairs([image(1), image(2)], tiny, safety, judge=options, stats=Stats()):
        assert tuple(each.scores) == names
        assert each.scores["similarity"] == each.similarity


def test_an_unreadable_image_costs_only_itself(tiny):
    images = [image(0), image(1, data=b"\x89PNG\r\n\x1a\nno"), image(2), image(3, data=b"")]
    found, stats = judge(images, tiny)
    assert [each.image.candidate.position for each in found] == [0, 2]
    assert stats.as_dict()["judge"] == {"in": 4, "out": 2, "lost": {"unreadable": 2}}


def test_nothing_in_nothing_out(tiny):
    assert judge([], tiny) == ([], Stats())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_no_image_is_lost_uncounted_however_batches_are_cut(tiny, data):
    kinds = st.sampled_from(["picture", "cut", "garbage", "same text"])
    images = []
    for number, kind in enumerate(data.draw(st.lists(kinds, max_size=12))):
        bytes_ = models.picture(number % 3)
        changed = {"cut": bytes_[: len(bytes_) // 2], "garbage": b"\xff\xd8\xff garbage"}
        text = "the same" if kind == "same text" else None
        images.append(image(number, data=changed.get(kind, bytes_), text=text))
    threshold = data.draw(st.floats(-1, 1))
    whole, stats = judge(images, tiny, threshold=threshold)
    cut, same = judge(images, tiny, threshold=threshold, batch=data.draw(st.integers(1, 5)))
    assert stats.entered[Stage.JUDGE] == len(images)
    assert [each.image for each in cut] == [each.image for each in whole]
    np.testing.assert_allclose(
        [each.similarity for each in cut], [each.similarity for each in whole], atol=1e-6
    )
    close = any(abs(each.similarity - threshold) < 1e-5 for each in whole)
    assert close or stats == same


def furthest(images, model, *, batch):
    """By how many images the input is ahead of the output, at most."""
    taken = ahead = 0

    def source():
        nonlocal taken
        for each in images:
            taken += 1
            yield each

    options = Judge(model="any", threshold=-1, batch=batch)
    safety = Safety(HARMLESS, model)
    found = score_pairs(source(), model, safety, judge=options, stats=Stats())
    for yielded, _ in enumerate(found):
        ahead = max(ahead, taken - yielded)
    return ahead


def test_only_a_few_batches_are_in_memory(tiny):
    images = [image(number % 5) for number in range(150)]
    assert furthest(images, tiny, batch=4) <= 4 * (tiny.slots + 3)


def test_huge_files_make_small_batches(tiny):
    data = models.picture(1) + bytes(40_000_000)  # 4 of them are a batch
    images = [image(number, data=data) for number in range(40)]
    assert furthest(images, tiny, batch=32) <= 4 * (tiny.slots + 3)


def test_leaving_early_ends_the_threads_and_the_source(tiny):
    closed = []

    def source():
        try:
            for number in range(100):
                yield image(number)
        finally:
            closed.append(True)

    before = set(threading.enumerate())
    options = Judge(model="any", threshold=-1, batch=2)
    safety = Safety(HARMLESS, tiny)
    found = score_pairs(source(), tiny, safety, judge=options, stats=Stats())
    next(found)
    found.close()
    assert set(threading.enumerate()) <= before
    assert closed


def test_an_error_of_the_source_comes_through(tiny):
    def source():
        yield image(1)
        raise ShardError("the parcel is damaged.")

    with pytest.raises(ShardError, match="the parcel is damaged"):
        judge(source(), tiny)
