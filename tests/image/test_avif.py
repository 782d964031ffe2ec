"""AVIF: taken like WebP, and written anew with the picture alone."""

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.image import avif
from cahlib.image.header import CAN_DECODE_AVIF, image_format
from cahlib.image.validate import validate_image
from tests.world.fetched import fetched
from tests.world.pictures import picture
from tests.world.profiles import SRGB, SWAPPED, halves
from tests.world.web import Web, body

pytestmark = pytest.mark.skipif(not CAN_DECODE_AVIF, reason="this Pillow decodes no AVIF")

ANY = Download(min_bytes=0)
SMALL = Download(min_bytes=0, resize=64)
SECRET = b"52.5163N 13.3777E by Jane Doe"


def saved(image, **how):
    out = io.BytesIO()
    image.save(out, "AVIF", **how)
    return out.getvalue()


def told(mode="RGB", orientation=6, **how):
    """A picture that tells a lot."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, SECRET.decode()
    image = Image.open(io.BytesIO(picture())).convert(mode)
    return saved(image, exif=exif.tobytes(), xmp=SECRET, **how)


def shown(data):
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGBA").tobytes()


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": "4:4:4", "quality": 90}),
        ("RGB", {"icc_profile": SRGB}),
        ("RGBA", {}),
        ("RGBA", {"alpha_premultiplied": True}),
        ("L", {"subsampling": "4:0:0"}),
        ("RGB", {"tile_rows": 1, "tile_cols": 1}),
        ("RGB", {"codec": "aom", "range": "limited"}),
    ],
)
def test_the_picture_stays_and_what_it_tells_goes(mode, how):
    data = told(mode, **how)
    assert SECRET in data
    kept = validate_image(data, ANY)
    assert (kept["format"], kept["width"], kept["height"]) == ("avif", 160, 120)
    assert SECRET not in kept["data"]
    assert shown(kept["data"]) == shown(data)
    with Image.open(io.BytesIO(kept["data"])) as image:
        assert dict(image.getexif()) == {0x0112: 6}
        assert image.info.get("icc_profile") == how.get("icc_profile")
        assert "xmp" not in image.info
    assert avif.strip_avif(kept["data"]) == kept["data"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_those_of_the_file(orientation):
    image = Image.new("RGB", (160, 120), "white")
    image.paste("black", (0, 0, 80, 60))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    kept = Image.open(io.BytesIO(validate_image(data, Download(resize=120, min_bytes=0))["data"]))
    assert (kept.format, kept.size) == ("JPEG", expected.size)
    for at in [(20, 20), (kept.width - 20, 20), (20, kept.height - 20)]:
        assert abs(kept.getpixel(at)[0] - expected.getpixel(at)[0]) < 20
    assert avif.read_avif_header(data)[2] == orientation


def test_of_a_sequence_the_first_picture_counts():
    frames = [Image.new("RGB", (160, 120), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], save_all=True, append_images=frames[1:])
    kept = validate_image(data, ANY)["data"]
    assert len(kept) < len(data)
    with Image.open(io.BytesIO(kept)) as image:
        assert (image.n_frames, image.convert("RGB").getpixel((9, 9))[0] > 200) == (1, True)


def test_profiles_are_applied():
    data = halves("RGB", "AVIF", SWAPPED, quality=95, subsampling="4:4:4")
    small = Image.open(io.BytesIO(validate_image(data, SMALL)["data"]))
    left = small.getpixel((small.width // 4, 32))
    assert all(abs(a - b) <= 8 for a, b in zip(left, (60, 201, 40), strict=True))


@pytest.mark.parametrize("profile", [SRGB[:200], b"short", bytes(400)])
def test_damaged_profiles_are_left_out(profile):
    data = saved(Image.new("RGB", (160, 120)), icc_profile=SRGB)
    at = data.index(SRGB)
    damaged = data[:at] + profile.ljust(len(SRGB), b"\0") + data[at + len(SRGB) :]
    kept = validate_image(damaged, ANY)["data"]
    with Image.open(io.BytesIO(kept)) as image:
        image.load()
        assert "icc_profile" not in image.info


def claimed(data, *size):
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", *size) + data[at + 8 :]


@pytest.mark.parametrize("options", [ANY, SMALL])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: d[:-1], DropReason.BROKEN_IMAGE),
        (lambda d: d[:-3000], DropReason.BROKEN_IMAGE),
        (lambda d: d[:200], DropReason.BROKEN_IMAGE),
        (lambda d: d.replace(b"pitm", b"free"), DropReason.BROKEN_IMAGE),
        (lambda d: d.replace(b"av01", b"hvc1"), DropReason.BROKEN_IMAGE),
        (lambda d: claimed(d, 60_000, 60_000), DropReason.TOO_MANY_PIXELS),
        (lambda d: claimed(d, 80, 70), DropReason.BROKEN_IMAGE),  # less than what is decoded
        (lambda d: claimed(d, 161, 120), DropReason.BROKEN_IMAGE),
        (lambda d: d[:8] + b"heic" + d[12:], DropReason.NOT_AN_IMAGE),
    ],
)
def test_refusals(damage, reason, options):
    assert validate_image(damage(picture("AVIF")), options) is reason


def test_bytes_behind_the_boxes_go():
    data = picture("AVIF")
    assert validate_image(data + b"\0\0\0\x10free" + bytes(8) + SECRET, ANY)[
        "data"
    ] == avif.strip_avif(data)


@given(st.data())
def test_damaged_files_give_a_picture_or_a_reason(data):
    damaged = bytearray(picture("AVIF", (80, 70)))
    places = st.tuples(
        st.integers(12, 400) | st.integers(12, len(damaged) - 1), st.integers(0, 255)
    )
    for at, value in data.draw(st.lists(places, min_size=1, max_size=20)):
        damaged[at] = value
    kept = validate_image(bytes(damaged), ANY)
    if not isinstance(kept, DropReason) and kept["format"] == "avif":
        with Image.open(io.BytesIO(kept["data"])) as image:
            image.load()


def test_it_is_asked_for_and_comes():
    data = picture("AVIF")
    with Web({"/a.avif": body(data)}) as web:
        (image,), _ = fetched(web, "http://a.example/a.avif")
    ((_, headers),) = web.asked
    assert "image/avif" in headers["accept"]
    assert (image.format, image.data) == ("avif", avif.strip_avif(data))
    assert image_format(data[:12]) == "avif"
