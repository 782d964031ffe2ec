"""Colours come out as a browser shows them, wherever a picture's pixels are looked at."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from cahlib.core.config import Download
from cahlib.image.colours import is_valid_profile, to_srgb
from cahlib.image.validate import validate_image
from cahlib.model.inputs import preprocess
from tests.world.pictures import phash
from tests.world.profiles import CYAN, GREY, INKS, SRGB, SWAPPED, WIDE, halves

SMALL = Download(resize=64, min_bytes=0)
KINDS = [
    ("RGB", "JPEG", {"quality": 95, "subsampling": 0}),
    ("RGB", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("P", "PNG", {}),
    ("RGB", "WEBP", {"lossless": True}),
    ("RGBA", "WEBP", {"lossless": True}),
]


def colours(image):
    """Of the left half and of the right one."""
    small = image.convert("RGB")
    return [small.getpixel((small.width * at // 4, small.height // 2)) for at in (1, 3)]


def close(found, wanted):
    return np.abs(np.subtract(found, wanted)).max() <= 6


def told(data, side=SMALL):
    return Image.open(io.BytesIO(validate_image(data, side)["data"]))


@pytest.mark.parametrize(("mode", "format", "how"), KINDS)
@pytest.mark.parametrize(
    ("profile", "wanted"),
    [
        (SWAPPED, [(60, 201, 40), (201, 60, 40)]),
        (WIDE, [(232, 57, 34), (0, 203, 0)]),
        (SRGB, [(201, 60, 40), (60, 201, 40)]),
        (None, [(201, 60, 40), (60, 201, 40)]),
        (GREY, [(201, 60, 40), (60, 201, 40)]),  # meant for others
        (SWAPPED[:-200], [(201, 60, 40), (60, 201, 40)]),  # damaged
    ],
)
def test_profiles_are_applied_where_pixels_are_looked_at(mode, format, how, profile, wanted):
    data = halves(mode, format, profile, **how)
    small = told(data)
    assert close(colours(small), wanted)
    assert "icc_profile" not in small.info
    whole = validate_image(data, Download(min_bytes=0))["data"]
    judged = Image.fromarray(preprocess(whole, [lambda image: image.convert("RGB")]))
    assert close(colours(judged), wanted)
    kept = Image.open(io.BytesIO(whole)).info.get("icc_profile")
    assert kept == (profile if profile and is_valid_profile(profile) else None)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_greys_have_profiles_too(mode):
    grey = Image.new("L", (160, 120), 55)
    if mode == "I;16":
        grey = grey.convert("I").point(lambda value: value * 257)
    out = io.BytesIO()
    grey.convert(mode, dither=Image.Dither.NONE).save(out, "PNG", icc_profile=GREY)
    light = told(out.getvalue()).convert("RGB").getpixel((9, 9))
    assert close([light], [(0, 0, 0) if mode == "1" else (128, 128, 128)])


def test_inks_are_shown_by_their_profile():
    out = io.BytesIO()
    Image.new("CMYK", (160, 120), (255, 0, 0, 0)).save(out, "JPEG", icc_profile=INKS)
    assert close(colours(told(out.getvalue())), [CYAN, CYAN])
    judged = preprocess(out.getvalue(), [lambda image: image.convert("RGB")])
    assert close([judged[9, 9]], [CYAN])
    other = halves("CMYK", "JPEG", SRGB, quality=95)  # meant for other colours
    assert close(colours(told(other)), colours(Image.open(io.BytesIO(other))))


def test_what_looks_the_same_has_the_same_hash():
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
    picture = small.resize((320, 240), Image.Resampling.BICUBIC)
    to = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(SWAPPED)), "RGB", "RGB"
    )
    plain, wide = io.BytesIO(), io.BytesIO()
    picture.save(plain, "PNG")
    to.apply(picture).save(wide, "PNG", icc_profile=SWAPPED)
    unlike = io.BytesIO()
    to.apply(picture).save(unlike, "PNG", icc_profile=None)
    own, same, other = (int(phash(each.getvalue()), 16) for each in (plain, wide, unlike))
    assert (own ^ same).bit_count() <= 1
    assert (own ^ other).bit_count() > 1


@pytest.mark.parametrize("end", [0, 40, 127, 131, 200, len(SRGB) - 1])
def test_damaged_profiles_are_ignored(end):
    assert not is_valid_profile(SRGB[:end])
    picture = Image.new("RGB", (8, 8), "red")
    assert to_srgb(picture, SWAPPED[:end]) is picture


def test_profiles_that_say_nothing_new_cost_nothing():
    assert is_valid_profile(SRGB)
    assert is_valid_profile(WIDE)
    for mode, profile, changes in (("RGB", SRGB, 0), ("RGB", WIDE, 1), ("L", GREY, 1)):
        picture = Image.new(mode, (8, 8), "teal" if mode == "RGB" else 100)
        assert (to_srgb(picture, profile) is picture) is not bool(changes)
    inks = Image.new("CMYK", (8, 8), (90, 20, 10, 0))
    assert to_srgb(inks, WIDE).tobytes() == inks.convert("RGB").tobytes()
