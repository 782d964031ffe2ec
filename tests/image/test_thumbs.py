"""Thumbs have what a model would be shown, and only pictures that are larger get one."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from cahlib.core.config import Download, Job, Judge, Resources
from cahlib.image import pixels, thumbs
from cahlib.image.pixels import resize_shorter_side
from cahlib.image.thumbs import read_plain_jpeg, read_thumb
from cahlib.image.validate import validate_image
from cahlib.model.inputs import preprocess
from cahlib.run.scrapers import with_thumbs
from tests.world.pictures import picture
from tests.world.profiles import WIDE

SIDE = 64


def smooth(size):
    """A picture whose neighbouring pixels are alike, as in photos."""
    return Image.open(io.BytesIO(picture(size=(9, 8)))).resize(size, Image.Resampling.BICUBIC)


def center(image):
    left, top = (round((length - SIDE) / 2) for length in image.size)
    return image.crop((left, top, left + SIDE, top + SIDE))


#: As open_clip's, where the model's input has this side.
STEPS = (partial(resize_shorter_side, side=SIDE), center, lambda image: image.convert("RGB"))


@pytest.mark.parametrize("size", [(300, 200), (90, 640)])
@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"icc_profile": WIDE}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("LA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
    ],
)
def test_a_thumb_is_what_the_model_would_see(size, mode, format, options):
    file = io.BytesIO()
    smooth(size).convert(mode).save(file, format, **options)
    kept = validate_image(file.getvalue(), Download(min_bytes=0, thumbs=SIDE))
    plain = validate_image(file.getvalue(), Download(min_bytes=0))
    shown = read_thumb(kept["thumb"], SIDE).astype(int)
    assert np.abs(shown - preprocess(kept["data"], STEPS)).mean() < 2
    # what else is said of the image does not hang on it
    apart = int(kept.pop("phash"), 16) ^ int(plain.pop("phash"), 16)
    assert apart.bit_count() <= 4
    own, other = (bytes.fromhex(each.pop("chroma")) for each in (kept, plain))
    assert max(abs(a - b) for a, b in zip(own, other, strict=True)) <= 2
    assert kept | {"thumb": b""} == plain


@pytest.mark.parametrize("size", [(300, 201), (90, 641), (64, 64), (65, 64), (40, 31)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0}), ("L", {})],
)
@pytest.mark.parametrize("vectors", [True, False])
def test_a_plain_jpeg_has_the_same_pixels_without_pillow(monkeypatch, size, mode, options, vectors):
    if not vectors:
        monkeypatch.setattr(pixels, "vectors", None)
    file = io.BytesIO()
    smooth(size).convert(mode).save(file, "JPEG", **options)
    shown = read_plain_jpeg(file.getvalue(), SIDE)
    assert shown.shape == (SIDE, SIDE, 3)
    assert np.array_equal(shown, preprocess(file.getvalue(), STEPS))


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [("CMYK", "JPEG", {}), ("RGB", "JPEG", {"icc_profile": WIDE}), ("RGB", "PNG", {})],
)
def test_what_needs_more_than_a_decoder_is_left_to_pillow(mode, format, options):
    file = io.BytesIO()
    smooth((90, 80)).convert(mode).save(file, format, **options)
    assert read_plain_jpeg(file.getvalue(), SIDE) is None


@pytest.mark.parametrize("kept", [0, 1, 20, 700, -2])
def test_a_damaged_jpeg_is_left_to_pillow(kept):
    file = io.BytesIO()
    smooth((90, 80)).save(file, "JPEG")
    assert read_plain_jpeg(file.getvalue()[:kept], SIDE) is None


def test_a_picture_that_is_small_or_huge_gets_none(monkeypatch):
    small, large = picture(size=(64, 90)), picture(size=(160, 120))
    want = Download(min_bytes=0, thumbs=SIDE)
    assert validate_image(small, want)["thumb"] == b""
    assert validate_image(large, want)["thumb"]
    assert validate_image(large, Download(min_bytes=0, thumbs=SIDE, resize=100))["thumb"] == b""
    monkeypatch.setattr(thumbs, "_MAX_PIXELS", 160 * 120 - 1)
    assert validate_image(large, want)["thumb"] == b""


@pytest.mark.parametrize("thumb", [b"", b"\xff\xd8\xff", picture("PNG"), picture(size=(65, 64))])
def test_what_is_no_such_thumb_is_not_used(thumb):
    assert read_thumb(thumb, SIDE) is None


def test_a_swarm_makes_thumbs_for_its_model_unless_told_otherwise():
    assert with_thumbs(Job()).thumbs == 0
    assert with_thumbs(Job(place=Resources(swarm=2))).thumbs == 224
    assert with_thumbs(Job(place=Resources(swarm=2), judge=Judge(preset="datacomp"))).thumbs == 256
    own = Judge(model="my-model", threshold=0.3)
    assert with_thumbs(Job(place=Resources(engine="tcp://a:1"), judge=own)).thumbs == 0
    assert with_thumbs(Job(place=Resources(swarm=2), download=Download(thumbs=0))).thumbs == 0
    assert with_thumbs(Job(place=Resources(swarm=2), judge=Judge(no_judge=True))).thumbs == 0
    assert with_thumbs(Job(download=Download(thumbs=336))).thumbs == 336
