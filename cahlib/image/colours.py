"""Convert pictures from their colour profile (ICC) to sRGB, as browsers do."""

from __future__ import annotations

import struct
from functools import lru_cache
from io import BytesIO

from PIL import Image as Picture
from PIL import ImageCms

from cahlib.image.pixels import to_plain_mode

_HEADER = 128  # bytes, before the tag table
_MAX_IGNORED = 3  # of 255: profiles that change less are ignored
_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}  # their names in profiles
#: Levels of the sample colours that show whether a profile changes anything.
_LEVELS = range(0, 256, 51)


def is_valid_profile(profile: bytes) -> bool:
    """Return whether bytes have the layout of a colour profile (ICC.1:2022, 7.1)."""
    if len(profile) < _HEADER + 4 or profile[36:40] != b"acsp":
        return False
    length, count = struct.unpack_from(">I", profile)[0], struct.unpack_from(">I", profile, 128)[0]
    if length > len(profile) or not 0 < count <= (length - _HEADER - 4) // 12:
        return False
    tags = (struct.unpack_from(">4sII", profile, 132 + 12 * tag) for tag in range(count))
    return all(start >= _HEADER + 4 and 8 <= size <= length - start for _, start, size in tags)


def to_srgb(picture: Picture.Image, profile: bytes | None) -> Picture.Image:
    """Return a loaded picture converted to sRGB, in a plain mode (`pixels.to_plain_mode`).

    ``profile`` is its own; a damaged one, or one for another colour space, is ignored.
    """
    transform = _usable_transform(picture.mode, profile)
    if transform is None:
        return to_plain_mode(picture)
    kind = _kind(picture.mode)
    if kind != "CMYK":
        picture = to_plain_mode(picture)
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    if kind == "L" and alpha:
        picture = picture.getchannel(0)
    colours = transform.apply(picture if picture.mode == kind else picture.convert(kind))
    colours.info.pop("icc_profile", None)  # sRGB's, which is not needed
    if alpha:
        colours.putalpha(alpha)
    return colours


def _usable_transform(mode: str, profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
    kind = _kind(mode)
    if not profile or profile[16:20] != _SPACES[kind] or not is_valid_profile(profile):
        return None
    return _transform(profile, kind)


def _kind(mode: str) -> str:
    """Return the mode in which a picture's colours are converted."""
    if mode in ("1", "L", "LA") or mode.startswith("I"):
        return "L"
    return "CMYK" if mode == "CMYK" else "RGB"


@lru_cache(maxsize=64)  # few different ones are common; lcms takes 1 to 50 ms for each
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of a mode to sRGB, None if it would change next to nothing."""
    try:
        made = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "CMYK":
        return made
    before = _samples(mode)
    after = made.apply(before).tobytes()
    change = max(abs(a - b) for a, b in zip(before.convert("RGB").tobytes(), after, strict=True))
    return made if change > _MAX_IGNORED else None


def _samples(mode: str) -> Picture.Image:
    if mode == "L":
        return Picture.frombytes("L", (len(_LEVELS), 1), bytes(_LEVELS))
    colours = bytes(v for r in _LEVELS for g in _LEVELS for b in _LEVELS for v in (r, g, b))
    return Picture.frombytes("RGB", (len(colours) // 3, 1), colours)
