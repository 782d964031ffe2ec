"""Colour profiles for tests, and pictures that carry them."""

import io
import struct

from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _renamed(profile: bytes, **names: str) -> bytes:
    """A profile with its tags under other names."""
    made = bytearray(profile)
    for at in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12):
        name = profile[at : at + 4].decode()
        made[at : at + 4] = names.get(name, name).encode()
    return bytes(made)


#: Red is green, and green is red.
SWAPPED = _renamed(SRGB, rXYZ="gXYZ", gXYZ="rXYZ")


def _tag(kind: bytes, *values: float) -> bytes:
    if kind == b"curv":
        return b"curv" + bytes(4) + struct.pack(">IHH", 1, round(values[0] * 256), 0)
    return kind + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def made(space: str, **tags: bytes) -> bytes:
    """A display profile with these tags."""
    head = bytearray(128)
    head[8:12], head[12:16], head[36:40] = b"\x02\x10\0\0", b"mntr", b"acsp"
    head[16:20], head[20:24] = space.encode(), b"XYZ "
    head[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        at = 132 + 12 * len(tags) + len(body)
        table += name.encode() + struct.pack(">II", at, len(content))
        body += content
    whole = bytes(head) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


_WHITE = _tag(b"XYZ ", 0.9642, 1.0, 0.8249)
#: Grey that is much lighter or darker than sRGB's, and colours of a wide gamut (Adobe RGB 1998).
GREY = made("GRAY", wtpt=_WHITE, kTRC=_tag(b"curv", 1.0))
WIDE = made(
    "RGB ",
    wtpt=_WHITE,
    rXYZ=_tag(b"XYZ ", 0.60974, 0.31111, 0.01947),
    gXYZ=_tag(b"XYZ ", 0.20528, 0.62567, 0.06087),
    bXYZ=_tag(b"XYZ ", 0.14919, 0.06322, 0.74457),
    rTRC=_tag(b"curv", 2.2),
    gTRC=_tag(b"curv", 2.2),
    bTRC=_tag(b"curv", 2.2),
)

_LINEAR = bytes(range(256))
#: Inks of which cyan alone shows as `CYAN`, all others as white: a table of their 16 mixtures.
INKS = made(
    "CMYK",
    wtpt=_WHITE,
    A2B0=b"mft1"
    + bytes([0, 0, 0, 0, 4, 3, 2, 0])
    + struct.pack(">9i", *(65536 * (at % 4 == 0) for at in range(9)))
    + 4 * _LINEAR
    + b"".join(bytes([128, 160, 96] if mix == 8 else [255, 128, 128]) for mix in range(16))
    + 3 * _LINEAR,
).replace(b"CMYKXYZ ", b"CMYKLab ", 1)
CYAN = (150, 102, 174)  # Lab of 50, 32, -32


def halves(mode: str, format: str, profile: bytes | None, **how: object) -> bytes:
    """A picture whose left half is (201, 60, 40) and whose right half is (60, 201, 40)."""
    picture = Image.new("RGB", (160, 120), (201, 60, 40))
    picture.paste((60, 201, 40), (80, 0, 160, 120))
    out = io.BytesIO()
    shown = picture.quantize() if mode == "P" else picture.convert(mode)
    shown.save(out, format, icc_profile=profile, **how)
    return out.getvalue()
