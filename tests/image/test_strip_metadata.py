"""Metadata goes, pixels stay."""

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.image.strip_metadata import strip_metadata
from cahlib.image.validate import validate_image

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
    kept = validate_image(data, Download(min_bytes=0))
    assert SECRET in data
    assert SECRET not in kept["data"]
    assert kept["md5"] == validate_image(data, Download(min_bytes=0, resize=64))["md5"]
    assert shown(kept["data"])[0] == shown(data)[0]
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(kept["data"])) as after:
        assert before.convert("RGBA").tobytes() == after.convert("RGBA").tobytes()
        assert before.info["icc_profile"] == after.info["icc_profile"]
        turned = how.get("orientation", 6)
        assert dict(after.getexif()) == ({} if turned == 1 else {0x0112: turned})
    assert strip_metadata(kept["data"], format, how.get("orientation", 6)) == kept["data"]


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
    kept = validate_image(telling, Download(min_bytes=0))["data"]
    assert SECRET[:6] not in kept
    assert shown(kept)[0] == shown(telling)[0]
    assert strip_metadata(data, "jpg", 1) == data


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def animated(*sizes, flags=0x02, hidden=b""):
    """A WebP of 160 × 120 pixels with frames of these sizes; and the first one as a file."""
    files = []
    for size in sizes:
        out = io.BytesIO()
        Image.effect_noise(size, 80).convert("RGB").save(out, "WEBP", lossless=True)
        files.append(out.getvalue())
    sides = [b"".join(struct.pack("<I", side - 1)[:3] for side in size) for size in sizes]
    frames = [
        chunk(b"ANMF", bytes(6) + side + bytes(4) + file[12:] + hidden)
        for side, file in zip(sides, files, strict=True)
    ]
    head = chunk(b"VP8X", bytes([flags, 0, 0, 0, 159, 0, 0, 119, 0, 0])) + chunk(b"ANIM", bytes(6))
    body = b"WEBP" + head + b"".join(frames) + chunk(b"XMP ", SECRET)
    return chunk(b"RIFF", body), files[0]


@pytest.mark.parametrize("hidden", [b"", chunk(b"mine", SECRET)])
def test_of_an_animation_only_the_first_frame_is_kept(hidden):
    data, first = animated((160, 120), (160, 120), (80, 60), hidden=hidden)
    kept = validate_image(data, Download(min_bytes=0))["data"]
    assert first[12:] in kept
    assert len(kept) == len(first) + 18  # VP8X, in which no animation is announced
    assert shown(kept)[0] == shown(first)[0]
    with Image.open(io.BytesIO(strip_metadata(data, "webp", 6))) as image:
        assert (image.n_frames, dict(image.getexif())) == (1, {0x0112: 6})
    assert strip_metadata(kept, "webp", 1) == kept


def test_an_animation_whose_first_frame_is_not_the_whole_picture_is_broken():
    for data, _ in (animated((80, 60), (160, 120)), animated((160, 120), flags=0)):
        assert validate_image(data, Download(min_bytes=0)) is DropReason.BROKEN_IMAGE
        with pytest.raises(ValueError, match="not the whole picture"):
            strip_metadata(data, "webp", 1)


WHOLE = {format: told(format) for format in KINDS}


@pytest.mark.parametrize("format", KINDS)
@given(data=st.data())
def test_damage_is_a_value_error_or_nothing(format, data):
    whole = WHOLE[format]
    at = data.draw(st.integers(12, len(whole) - 1))
    broken = whole[:at] + data.draw(st.binary(max_size=8))
    try:
        strip_metadata(broken, format, 1)
    except ValueError:
        pass
