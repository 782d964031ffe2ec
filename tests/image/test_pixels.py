"""Pictures in another size, by vector instructions and by Pillow."""

import io
import struct
import subprocess
import sys
import zlib

import pytest
from PIL import Image, ImageChops

from cahlib.image import pixels

SIZES = [((90, 70), (64, 50)), ((300, 40), (31, 4)), ((1, 9), (5, 3)), ((64, 64), (64, 64))]


def drawn(mode, size):
    noise = [Image.effect_noise(size, 30) for _ in range(4)]
    return Image.merge("RGBA", noise).convert(mode)


@pytest.mark.skipif(pixels.vectors is None, reason="needs cykooz_resizer and a Pillow it knows")
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(("size", "other"), SIZES)
def test_both_ways_apply_the_same_filter(mode, size, other, monkeypatch):
    picture = drawn(mode, size)
    found = pixels.resize_picture(picture, other)
    monkeypatch.setattr(pixels, "vectors", None)
    expected = pixels.resize_picture(picture, other)
    assert (found.mode, found.size) == (expected.mode, expected.size) == (mode, other)
    apart = ImageChops.difference(pixels.flatten_on_white(found), pixels.flatten_on_white(expected))
    assert max(most for _, most in apart.getextrema()) <= 3


def test_more_transparent_colours_than_a_palette_can_have_are_no_transparency():
    file = io.BytesIO()
    drawn("RGB", (40, 30)).quantize(256).save(file, "PNG")
    data = file.getvalue()
    said = b"tRNS" + b"\xff" * 257
    chunk = struct.pack(">I", 257) + said + struct.pack(">I", zlib.crc32(said))
    at = data.index(b"IDAT") - 4
    with Image.open(io.BytesIO(data[:at] + chunk + data[at:])) as picture:
        assert pixels.to_plain_mode(picture).mode == "RGB"


@pytest.mark.parametrize("version", ["10.4.0", "14.0.0"])
def test_a_pillow_whose_pictures_it_does_not_know_is_asked_itself(version):
    script = f"""
import PIL
from PIL import Image
PIL.__version__ = {version!r}
from cahlib.image import pixels
assert pixels.vectors is None
assert pixels.resize_picture(Image.new("RGB", (90, 70)), (9, 7)).size == (9, 7)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
