"""What is stored opens, whatever is damaged beside its pixels; what is sound stays."""

import io
import struct
import zlib

import pytest
from PIL import Image

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.image.validate import validate_image
from tests.world.pictures import picture
from tests.world.profiles import SRGB, halves

ANY = Download(min_bytes=0)
SIDE = {
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    b"sRGB": b"\0",
    b"cICP": bytes([9, 16, 0, 1]),
    b"iCCP": b"sRGB\0\0" + zlib.compress(SRGB),
    b"sBIT": b"\x08\x08\x08",
    b"pHYs": struct.pack(">IIB", 2835, 2835, 1),
    b"bKGD": bytes(6),
    b"tRNS": bytes(6),
}


def chunk(name, content, *, crc=None, length=None):
    checksum = zlib.crc32(name + content) if crc is None else crc
    length = len(content) if length is None else length
    return struct.pack(">I", length) + name + content + struct.pack(">I", checksum)


def with_part(part, *, before=b"IDAT", format="RGB"):
    data = picture("PNG", mode=format)
    at = data.index(before) - 4
    return data[:at] + part + data[at:]


def opened(data):
    """All that was stored, loaded by Pillow as a reader of the dataset does."""
    kept = validate_image(data, ANY)
    with Image.open(io.BytesIO(kept["data"])) as image:
        image.load()
        assert image.size == (160, 120)
    return kept["data"]


@pytest.mark.parametrize("name", SIDE, ids=bytes.decode)
def test_sound_parts_of_a_png_stay(name):
    part = chunk(name, SIDE[name])
    assert part in opened(with_part(part))


DAMAGED = {
    "checksum": lambda name: chunk(name, SIDE[name], crc=7),
    "empty": lambda name: chunk(name, b""),
    "too short": lambda name: chunk(name, SIDE[name][:-1]) if len(SIDE[name]) > 1 else b"",
    "too long": lambda name: chunk(name, SIDE[name] + bytes(3)) if name != b"iCCP" else b"",
    "twice": lambda name: 2 * chunk(name, SIDE[name]),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", SIDE, ids=bytes.decode)
def test_damaged_parts_of_a_png_are_left_out(name, damage):
    part = DAMAGED[damage](name)
    assert opened(with_part(part)).count(name) == (damage == "twice" or 0)


@pytest.mark.parametrize("name", SIDE, ids=bytes.decode)
def test_parts_of_a_png_in_the_wrong_place_are_left_out(name):
    part = chunk(name, SIDE[name])
    assert name not in opened(with_part(part, before=b"IEND"))


@pytest.mark.parametrize("name", SIDE, ids=bytes.decode)
def test_a_part_of_a_png_with_a_wrong_length_breaks_it_or_harms_nothing(name):
    for length in (0, 1, 1000, 1 << 31):
        data = with_part(chunk(name, SIDE[name], length=length))
        if validate_image(data, ANY) is not DropReason.BROKEN_IMAGE:
            opened(data)


@pytest.mark.parametrize(
    "content",
    [
        b"sRGB\0\1" + zlib.compress(SRGB),  # an unknown compression
        b"\0\0" + zlib.compress(SRGB),
        b"n" * 80 + b"\0\0" + zlib.compress(SRGB),
        b"sRGB\0\0" + zlib.compress(SRGB)[:-9],
        b"sRGB\0\0" + SRGB,
        b"sRGB\0\0" + zlib.compress(SRGB[:300]),
        b"sRGB\0\0" + zlib.compress(b"no profile" * 50),
        b"sRGB\0\0" + zlib.compress(bytes(50_000_000)),
        b"sRGB",
    ],
)
def test_damaged_profiles_of_a_png_are_left_out(content):
    assert b"iCCP" not in opened(with_part(chunk(b"iCCP", content)))


@pytest.mark.parametrize("transparency", [b"", bytes(257), bytes(3)])
def test_transparency_is_for_the_colours_of_the_palette(transparency):
    data = with_part(chunk(b"tRNS", transparency), format="P")
    assert (b"tRNS" in opened(data)) == (len(transparency) == 3)
    assert b"tRNS" not in opened(with_part(chunk(b"tRNS", b"\0"), before=b"PLTE", format="P"))


def test_damaged_pixels_of_a_png_are_broken():
    data = bytearray(picture("PNG"))
    data[-20] ^= 1  # the checksum of the last piece of pixels
    assert validate_image(bytes(data), ANY) is DropReason.BROKEN_IMAGE


def test_a_png_whose_end_alone_is_missing_is_whole():
    data = picture("PNG")
    for missing in range(1, 13):
        with Image.open(io.BytesIO(validate_image(data[:-missing], ANY)["data"])) as kept:
            assert kept.tobytes() == Image.open(io.BytesIO(data)).tobytes()
    for missing in range(13, 40):
        assert validate_image(data[:-missing], ANY) is DropReason.BROKEN_IMAGE


def segments(*parts):
    whole = picture("JPEG")
    made = [b"\xff\xe2" + struct.pack(">H", 2 + len(part)) + part for part in parts]
    return whole[:20] + b"".join(made) + whole[20:]


ICC = b"ICC_PROFILE\0"
HALF = len(SRGB) // 2


@pytest.mark.parametrize(
    ("parts", "kept"),
    [
        ([ICC + b"\1\1" + SRGB], 1),
        ([ICC + b"\1\2" + SRGB[:HALF], ICC + b"\2\2" + SRGB[HALF:]], 2),
        ([ICC + b"\2\2" + SRGB[HALF:], ICC + b"\1\2" + SRGB[:HALF]], 2),
        ([ICC + b"\1\2" + SRGB[:HALF]], 0),
        ([ICC + b"\1\1" + SRGB[:HALF]], 0),
        ([ICC + b"\0\1" + SRGB], 0),
        ([ICC + b"\1\1" + SRGB, ICC + b"\1\1" + SRGB], 0),
        ([ICC], 0),
        ([ICC + b"\1"], 0),
        ([ICC + b"\1\1" + bytes(500)], 0),
        ([b"MPF\0" + bytes(40)], 0),
        ([b"urn:iso:something"], 0),
        ([b""], 0),
    ],
)
def test_profiles_of_a_jpeg_stay_if_they_are_sound(parts, kept):
    data = opened(segments(*parts))
    assert data.count(b"\xff\xe2") == data.count(ICC) == kept
    with Image.open(io.BytesIO(data)) as image:
        assert image.info.get("icc_profile") == (SRGB if kept else None)


@pytest.mark.parametrize("profile", [SRGB, SRGB[:-9], b"short", bytes(400)])
def test_profiles_of_a_webp_stay_if_they_are_sound(profile):
    data = opened(halves("RGB", "WEBP", profile))
    with Image.open(io.BytesIO(data)) as image:
        assert image.info.get("icc_profile") == (SRGB if profile == SRGB else None)
    assert (b"ICCP" in data) == (profile == SRGB)
