"""Validation of images."""

import hashlib
import io
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.image.perceptual_hash import looks_of_file
from cahlib.image.validate import validate_image
from tests.world.pictures import picture

ORIGINALS = Download()
SMALL = Download(resize=64)
ANY = Download(resize=64, min_bytes=0)
FORMATS = ["JPEG", "PNG", "WEBP"]


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, *, data=b"", extra=b""):
    """A PNG that says it has this size, whatever it holds."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def reopened(kept):
    return Pillow.open(io.BytesIO(kept["data"]))


@pytest.mark.parametrize("format", FORMATS)
def test_originals_stay_as_they_are(format):
    data = picture(format)
    kept = validate_image(data, ORIGINALS)
    assert kept == {
        "data": data,
        "format": {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[format],
        "width": 160,
        "height": 120,
        "original_width": 160,
        "original_height": 120,
        "md5": hashlib.md5(data).hexdigest(),
        "sha1": hashlib.sha1(data).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "thumb": b"",
        **looks_of_file(data),
    }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("size", "small"),
    [((160, 120), (85, 64)), ((120, 160), (64, 85)), ((64, 64), (64, 64)), ((640, 512), (80, 64))],
)
def test_re_encoded_pictures_have_the_short_side(format, size, small):
    data = picture(format, size)
    kept = validate_image(data, ANY)
    assert kept["format"] == "jpg"
    assert (kept["width"], kept["height"]) == reopened(kept).size == small
    assert (kept["original_width"], kept["original_height"]) == size
    assert reopened(kept).mode == "RGB"
    assert kept["sha256"] == hashlib.sha256(data).hexdigest()


def test_nothing_is_made_larger():
    kept = validate_image(picture(), Download(resize=256))
    assert (kept["width"], kept["height"]) == (160, 120)


@pytest.mark.parametrize(
    ("mode", "size", "small", "seen"),
    [
        ("longer", (160, 120), (64, 48), None),
        ("longer", (60, 40), (60, 40), None),
        ("crop", (160, 120), (64, 64), (64, 64)),
        ("crop", (120, 160), (64, 64), (64, 64)),
        ("crop", (60, 40), (40, 40), (40, 40)),
        ("border", (160, 120), (64, 64), (64, 48)),
        ("border", (60, 120), (64, 64), (32, 64)),
        ("border", (60, 40), (60, 60), (60, 40)),
    ],
)
@pytest.mark.parametrize("format", ["jpg", "png", "webp"])
def test_pictures_get_the_size_and_format_that_training_wants(format, mode, size, small, seen):
    """Of a dark picture on white, what is seen is what is dark, in the middle."""
    file = io.BytesIO()
    Pillow.new("RGB", size, (20, 30, 40)).save(file, "PNG")
    settings = Download(resize=64, resize_mode=mode, resize_format=format, min_bytes=0, min_side=1)
    kept = validate_image(file.getvalue(), settings)
    shown = reopened(kept)
    names = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
    assert (kept["format"], shown.format, shown.size) == (format, names[format], small)
    assert (kept["width"], kept["height"]) == small
    dark = shown.convert("L").point(lambda value: 255 * (value < 128)).getbbox()
    wanted = seen or small
    left, top = (small[0] - wanted[0]) // 2, (small[1] - wanted[1]) // 2
    assert dark == (left, top, left + wanted[0], top + wanted[1])


def test_a_lower_quality_takes_fewer_bytes():
    sizes = [
        len(validate_image(picture(), replace(ANY, resize_format=format, resize_quality=q))["data"])
        for format in ("jpg", "webp")
        for q in (95, 50)
    ]
    assert sizes[1] < sizes[0] and sizes[3] < sizes[2]


def test_re_encoding_shows_the_same_picture():
    gradient = Pillow.linear_gradient("L").resize((512, 512)).convert("RGB")
    for format in FORMATS:
        file = io.BytesIO()
        gradient.save(file, format)
        kept = reopened(validate_image(file.getvalue(), ANY))
        for at in range(4, 64, 8):
            assert abs(kept.getpixel((32, at))[1] - at * 4) < 8


def test_re_encoding_turns_upright_and_drops_what_is_said_about_it():
    image = Pillow.open(io.BytesIO(picture()))
    exif = image.getexif()
    exif[0x0112], exif[0x010F] = 6, "A secret camera"
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, comment=b"a secret", quality=95)
    kept = validate_image(file.getvalue(), Download(resize=90))
    assert (kept["width"], kept["height"]) == (90, 120)
    assert b"secret" not in kept["data"]
    assert not reopened(kept).getexif()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_exif(orientation, format):
    image = Pillow.new("RGB", (160, 120), "white")
    image.paste("black", (0, 0, 80, 60))
    exif = image.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, format, exif=exif)
    expected = ImageOps.exif_transpose(Pillow.open(file))
    kept = reopened(validate_image(file.getvalue(), Download(resize=120, min_bytes=0)))
    assert kept.size == expected.size
    for at in [(20, 20), (kept.width - 20, 20), (20, kept.height - 20)]:
        assert abs(kept.getpixel(at)[0] - expected.getpixel(at)[0]) < 20


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_every_kind_of_colour_becomes_rgb(mode):
    gradient = Pillow.linear_gradient("L").resize((256, 256))
    if mode == "I;16":
        image = gradient.convert("I").point(lambda value: value * 257).convert("I;16")
    else:
        image = gradient.convert("RGB").convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG")
    kept = reopened(validate_image(file.getvalue(), ANY))
    assert kept.mode == "RGB"
    assert [kept.getpixel((32, at))[0] > 128 for at in (4, 60)] == [False, True]


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_what_is_transparent_becomes_white(format):
    image = Pillow.new("RGBA", (128, 128), (0, 0, 0, 0))
    file = io.BytesIO()
    image.save(file, format)
    kept = reopened(validate_image(file.getvalue(), ANY))
    assert kept.getpixel((32, 32)) == (255, 255, 255)


def test_a_palette_with_transparency_becomes_white():
    image = Pillow.new("P", (128, 128), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    for transparency in (0, b"\x00\x80"):
        file = io.BytesIO()
        image.save(file, "PNG", transparency=transparency)
        kept = reopened(validate_image(file.getvalue(), ANY))
        assert kept.getpixel((32, 32)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
@pytest.mark.parametrize("options", [ORIGINALS, SMALL])
def test_of_an_animation_the_first_frame_counts(format, options):
    frames = [
        Pillow.open(io.BytesIO(picture(size=(160, 120 + n)))).resize((160, 120)) for n in (0, 1)
    ]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], lossless=True)
    kept = validate_image(file.getvalue(), options)
    assert getattr(reopened(kept), "n_frames", 1) == 1
    shown = reopened(kept).convert("RGB").resize((8, 8), Pillow.Resampling.BOX)
    first = frames[0].resize((8, 8), Pillow.Resampling.BOX)
    for at in [(1, 1), (6, 3), (4, 6)]:
        difference = [
            abs(a - b) for a, b in zip(shown.getpixel(at), first.getpixel(at), strict=True)
        ]
        assert max(difference) < 10


GIF = b"GIF89a" + picture()
HTML = b"<!doctype html><title>404</title>" * 300
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>' * 100


@pytest.mark.parametrize("options", [ORIGINALS, SMALL])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", DropReason.NOT_AN_IMAGE),
        (b"tiny", DropReason.NOT_AN_IMAGE),
        (GIF, DropReason.NOT_AN_IMAGE),
        (HTML, DropReason.NOT_AN_IMAGE),
        (SVG, DropReason.NOT_AN_IMAGE),
        (picture()[:4000], DropReason.TOO_FEW_BYTES),
        (picture(size=(300, 63)), DropReason.SMALL_SIDE),
        (picture(size=(64, 600)), DropReason.ASPECT),
        (png(60_000, 60_000, data=bytes(9_000_000)), DropReason.TOO_MANY_PIXELS),
        (picture("PNG")[:-13], DropReason.BROKEN_IMAGE),
        (picture("WEBP")[:-1], DropReason.BROKEN_IMAGE),
        (picture("JPEG")[:-3], DropReason.BROKEN_IMAGE),
        (picture("JPEG")[:-3000], DropReason.BROKEN_IMAGE),
        (picture("JPEG", progressive=True)[:-3], DropReason.BROKEN_IMAGE),
        (picture("JPEG", progressive=True)[:-3000], DropReason.BROKEN_IMAGE),
        (b"\xff\xd8\xff\xe0" + bytes(9000), DropReason.BROKEN_IMAGE),
        (b"\x89PNG\r\n\x1a\n" + bytes(9000), DropReason.BROKEN_IMAGE),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(9000), DropReason.SMALL_SIDE),
        (png(100, 100, data=bytes(100)) + bytes(9000), DropReason.BROKEN_IMAGE),
    ],
)
def test_refusals(data, reason, options):
    assert validate_image(data, options) is reason


def test_too_many_bytes():
    assert validate_image(picture(), Download(max_bytes=5000)) is DropReason.TOO_MANY_BYTES


@pytest.mark.parametrize("format", FORMATS)
def test_a_size_that_is_only_claimed_is_not_believed(format):
    """The head says 60,000 or 16,000 pixels: refused by it, before anything is decoded."""
    data = bytearray(picture(format))
    if format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    elif format == "PNG":
        data[16:24] = struct.pack(">II", 60_000, 60_000)
    else:
        data[26:30] = struct.pack("<HH", 16_000, 16_000)
    assert validate_image(bytes(data), ORIGINALS) is DropReason.TOO_MANY_PIXELS
    assert validate_image(bytes(data), Download(max_pixels=10**9)) in (
        DropReason.BROKEN_IMAGE,
        DropReason.TOO_MANY_PIXELS,
    )


def test_a_text_chunk_that_swells_is_never_inflated():
    swelling = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000)))
    data = png(100, 100, data=(b"\0" + bytes(300)) * 100, extra=swelling)
    kept = validate_image(data, SMALL)
    assert (kept["width"], kept["height"]) == (64, 64)


def test_a_progressive_file_with_endless_scans_is_refused():
    data = picture("JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[scan:-2] * 100 + b"\xff\xd9"
    assert validate_image(bomb, ORIGINALS) is DropReason.BROKEN_IMAGE


def test_trailing_bytes_do_no_harm():
    for format in FORMATS:
        assert validate_image(picture(format) + b"<script>" * 100, ORIGINALS)["width"] == 160


WHOLE = [picture(format, **how) for format in FORMATS for how in ({}, {"exif": b"Exif\0\0II*\0"})]
WHOLE.append(picture("JPEG", progressive=True))
NO_LIMITS = [Download(min_bytes=0), ANY]


@given(st.sampled_from(WHOLE), st.data(), st.sampled_from(NO_LIMITS))
def test_damaged_files_give_a_picture_or_a_reason(whole, data, options):
    damaged = bytearray(whole)
    for at, value in data.draw(
        st.lists(
            st.tuples(st.integers(2, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=20
        )
    ):
        damaged[at if data.draw(st.booleans()) else at % 200 + 2] = value
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    assert_fine(validate_image(bytes(damaged[:cut]), options))


@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBP", b""]), st.binary())
def test_garbage_gives_a_reason(start, garbage):
    assert isinstance(validate_image(start + garbage, NO_LIMITS[0]), DropReason)


@given(st.integers(0, len(WHOLE) - 1), st.integers(3, 4000))
def test_what_is_cut_off_is_refused(which, cut):
    assume(cut > 12 or not WHOLE[which].startswith(b"\x89PNG"))  # whose end says nothing
    assert validate_image(WHOLE[which][:-cut], NO_LIMITS[0]) is DropReason.BROKEN_IMAGE


@pytest.mark.parametrize("options", NO_LIMITS)
@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_missing_end_mark_says_nothing_of_the_pixels(cut, how, options):
    whole = picture("JPEG", **how)
    kept, same = validate_image(whole[:-cut], options), validate_image(whole, options)
    assert kept["data"] == same["data"]


def assert_fine(result):
    if not isinstance(result, DropReason):
        assert len(result["data"]) > 0 and result["width"] > 0
