"""Metadata goes, pixels stay."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from cahlib.config import Download
from cahlib.scrape.gate import prove
from cahlib.scrape.strip import stripped

SECRET = b"52.5163N 13.3777E by Jane Doe"
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def told(format, *, mode="RGB", orientation=6, **how):
    """A picture that tells a lot: EXIF, XMP, comments, a colour profile, something behind it."""
    image = Image.effect_noise((160, 120), 80).convert(mode)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, SECRET.decode()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more = {"icc_profile": profile, "exif": exif.tobytes(), **how}
    if format == "jpg":
        more["comment"] = SECRET
    if format == "png":
        more["pnginfo"] = PngImagePlugin.PngInfo()
        more["pnginfo"].add_text("Author", SECRET.decode())
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", SECRET.decode())
    if format == "webp":
        more["xmp"] = SECRET
    out = io.BytesIO()
    image.save(out, KINDS[format], **more)
    return out.getvalue() + SECRET


def shown(data):
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGBA").tobytes(), image.info


@pytest.mark.parametrize(
    ("format", "how"),
    [
        ("jpg", {}),
        ("jpg", {"orientation": 1}),
        ("jpg", {"progressive": True}),
        ("jpg", {"mode": "CMYK"}),
        ("jpg", {"mode": "L", "restart_marker_blocks": 2}),
        ("png", {}),
        ("png", {"mode": "P"}),
        ("png", {"mode": "LA"}),
        ("png", {"orientation": 1}),
        ("webp", {}),
        ("webp", {"orientation": 1}),
        ("webp", {"mode": "RGBA", "lossless": True}),
    ],
)
def test_originals_are_kept_without_what_they_tell(format, how):
    data = told(format, **how)
    kept = prove(data, Download(min_bytes=0))
    assert SECRET in data
    assert SECRET not in kept["data"]
    assert kept["md5"] == prove(data, Download(min_bytes=0, resize=64))["md5"]
    assert shown(kept["data"])[0] == shown(data)[0]
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(kept["data"])) as after:
        assert before.convert("RGBA").tobytes() == after.convert("RGBA").tobytes()
        assert before.info["icc_profile"] == after.info["icc_profile"]
        turned = how.get("orientation", 6)
        assert dict(after.getexif()) == ({} if turned == 1 else {0x0112: turned})
    assert stripped(kept["data"], format, how.get("orientation", 6)) == kept["data"]


def segment(marker, content):
    return bytes([0xFF, marker]) + (2 + len(content)).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "hidden",
    [
        segment(0xE0, b"JFXX\0\x10" + SECRET),
        segment(0xE0, b"Exif\0\0" + SECRET),
        segment(0xE0, b"JFIF\0" + SECRET[:6]),
        segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\x0a\1" + SECRET),
        segment(0xEE, SECRET),
        segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + SECRET),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_no_thumbnail_hides_where_colours_are_told_of(hidden, mode):
    out = io.BytesIO()
    Image.effect_noise((160, 120), 80).convert(mode).save(out, "JPEG")
    data = out.getvalue()
    end = 4 + int.from_bytes(data[4:6], "big")  # of the first segment, JFIF or Adobe
    telling = data[:end] + hidden + data[end:]
    kept = prove(telling, Download(min_bytes=0))["data"]
    assert SECRET[:6] not in kept
    assert shown(kept)[0] == shown(telling)[0]
    assert stripped(data, "jpg", 1) == data


WHOLE = {format: told(format) for format in KINDS}


@pytest.mark.parametrize("format", KINDS)
@given(data=st.data())
def test_damage_is_a_value_error_or_nothing(format, data):
    whole = WHOLE[format]
    at = data.draw(st.integers(12, len(whole) - 1))
    broken = whole[:at] + data.draw(st.binary(max_size=8))
    try:
        stripped(broken, format, 1)
    except ValueError:
        pass
