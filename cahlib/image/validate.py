"""The gate: bytes become a picture that is proven by decoding it, or a reason why not.

Nothing that the server said counts here. It does not know where the bytes come from.
"""

from __future__ import annotations

import struct
from hashlib import md5, sha1, sha256
from io import BytesIO
from typing import TypedDict

from PIL import AvifImagePlugin
from PIL import Image as Pillow
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cahlib.config import Download
from cahlib.image import jpeg
from cahlib.image.colours import to_srgb
from cahlib.image.header import CAN_DECODE_AVIF, ImageHeader, read_header
from cahlib.image.pixels import flatten_on_white, resize_picture
from cahlib.image.strip_metadata import strip_metadata
from cahlib.records import Reason

#: The readers are called directly: `PIL.Image.open` would look for further formats, read
#: multi-picture JPEGs, and warn by a pixel limit of its own.
_READERS: dict[str, type[ImageFile]] = {
    "jpg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
}

if CAN_DECODE_AVIF:
    _READERS["avif"] = AvifImagePlugin.AvifImageFile
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # decoders work side by side already

#: What Pillow raises about bytes that it cannot read.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    MemoryError,
    RuntimeError,
    struct.error,
    Pillow.DecompressionBombError,
)

_QUALITY = 95  # as img2dataset; losses add up when training crops and encodes again

#: EXIF's orientation: what turns the picture upright.
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


class ValidatedImage(TypedDict):
    """The fields of `cahlib.records.Image` that come from the bytes."""

    data: bytes
    format: str
    width: int
    height: int
    original_width: int
    original_height: int
    md5: str
    sha1: str
    sha256: str


def validate_image(data: bytes, options: Download) -> ValidatedImage | Reason:
    """Check a file by format, size and decoding; keep its bytes, or a smaller JPEG of it."""
    anatomy = read_header(data)
    if anatomy is Reason.NOT_AN_IMAGE:
        return anatomy
    if reason := length_drop_reason(len(data), options):
        return reason
    if isinstance(anatomy, Reason):
        return anatomy
    if reason := size_drop_reason(anatomy.width, anatomy.height, options):
        return reason
    try:
        whole = strip_metadata(data, anatomy.format, anatomy.orientation)
        if options.resize:
            kept, format, size = _small(whole, anatomy, options.resize)
        else:
            kept, format, size = _whole(whole, anatomy)
    except _BROKEN:
        return Reason.BROKEN_IMAGE
    return ValidatedImage(
        data=kept,
        format=format,
        width=size[0],
        height=size[1],
        original_width=anatomy.width,
        original_height=anatomy.height,
        md5=md5(data, usedforsecurity=False).hexdigest(),
        sha1=sha1(data, usedforsecurity=False).hexdigest(),
        sha256=sha256(data).hexdigest(),
    )


def length_drop_reason(length: int, options: Download) -> Reason | None:
    """Why a file of this many bytes is not wanted."""
    if length < options.min_bytes:
        return Reason.TOO_FEW_BYTES
    return Reason.TOO_MANY_BYTES if length > options.max_bytes else None


def size_drop_reason(width: int, height: int, options: Download) -> Reason | None:
    """Why a picture of this many pixels is not wanted."""
    short, long = sorted((width, height))
    if short < options.min_side:
        return Reason.SMALL_SIDE
    if width * height > options.max_pixels:
        return Reason.TOO_MANY_PIXELS
    return Reason.ASPECT if long > short * options.max_aspect else None


def _open(kept: bytes, anatomy: ImageHeader) -> ImageFile:
    """Open what will be stored, so that readers of the dataset can."""
    image = _READERS[anatomy.format](BytesIO(kept))
    if image.size != (anatomy.width, anatomy.height):
        raise ValueError("the file names two sizes")
    image.decodermaxblock = len(kept)  # all in one go: in pieces it takes 5 % longer
    return image


def _whole(kept: bytes, anatomy: ImageHeader) -> tuple[bytes, str, tuple[int, int]]:
    """Decode for the proof alone; the bytes stay as they are."""
    with _open(kept, anatomy) as image:
        if anatomy.format == "jpg":
            jpeg.decode_jpeg(kept)
        else:
            image.load()
    return kept, anatomy.format, (anatomy.width, anatomy.height)


def _small(kept: bytes, anatomy: ImageHeader, side: int) -> tuple[bytes, str, tuple[int, int]]:
    """Return an upright JPEG in sRGB whose shorter side is at most ``side``, without metadata."""
    scale = min(1.0, side / min(anatomy.width, anatomy.height))
    size = max(1, round(anatomy.width * scale)), max(1, round(anatomy.height * scale))
    with _open(kept, anatomy) as image:
        profile = image.info.get("icc_profile")
        loaded = _loaded(image, kept, anatomy, size)
    whole = loaded if loaded.mode in ("L", "RGB") else to_srgb(loaded, profile)
    # What is far too large is averaged first, which needs no copies of all its pixels.
    if (factor := min(whole.width // size[0], whole.height // size[1]) // 2) > 1:
        whole = whole.reduce(factor)
    small = resize_picture(whole, size)
    if loaded.mode in ("L", "RGB"):  # the fewer pixels
        small = to_srgb(small, profile)
    small = flatten_on_white(small)
    if anatomy.orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[anatomy.orientation])
    out = BytesIO()
    small.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue(), "jpg", small.size


def _loaded(
    image: ImageFile, kept: bytes, anatomy: ImageHeader, size: tuple[int, int]
) -> Pillow.Image:
    """Return the decoded pixels, of a JPEG at a scale that suffices for ``size``."""
    if anatomy.format == "jpg" and image.mode != "CMYK":
        return Pillow.fromarray(jpeg.decode_jpeg(kept, image.mode, size))
    if anatomy.format == "jpg":  # whose inks Pillow knows better: Adobe stores them inverted
        jpeg.decode_jpeg(kept)
        image.draft("CMYK", size)
    image.load()
    return image
