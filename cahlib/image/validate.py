"""Validate an image file by decoding it, and store it as served or smaller.

What the server said about it does not matter here.
"""

from __future__ import annotations

import struct
from hashlib import md5, sha1, sha256
from io import BytesIO

from PIL import AvifImagePlugin
from PIL import Image as Pillow
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.image import jpeg
from cahlib.image.colours import to_srgb
from cahlib.image.header import CAN_DECODE_AVIF, ImageHeader, read_header
from cahlib.image.perceptual_hash import LOOKS_SIDE, Looks, looks, scaled_for_looks
from cahlib.image.pixels import flatten_on_white, resize_picture
from cahlib.image.strip_metadata import strip_metadata
from cahlib.image.thumbs import make_thumb, needs_thumb

#: Pillow's plugins are called directly: `PIL.Image.open` would try other formats, read
#: multi-picture JPEGs, and warn about a pixel limit of its own.
_READERS: dict[str, type[ImageFile]] = {
    "jpg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
}

if CAN_DECODE_AVIF:
    _READERS["avif"] = AvifImagePlugin.AvifImageFile
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded in parallel already

#: What Pillow raises for files that it cannot read.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, MemoryError, RuntimeError,
    struct.error, Pillow.DecompressionBombError,
)  # fmt: skip

#: Pillow's names of the formats that images are encoded in.
_WRITERS = {"jpg": "JPEG", "webp": "WEBP", "png": "PNG"}

#: How to turn a picture upright, by EXIF orientation.
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


class KeptImage(Looks):
    """The fields of `cahlib.core.records.Image` that come from the stored pixels."""

    data: bytes
    format: str
    width: int
    height: int
    thumb: bytes


class ValidatedImage(KeptImage):
    """The fields of `cahlib.core.records.Image` that come from the file."""

    original_width: int
    original_height: int
    md5: str
    sha1: str
    sha256: str


def validate_image(data: bytes, options: Download) -> ValidatedImage | DropReason:
    """Check a file's format, size and pixels; return it stripped, or as a smaller JPEG."""
    header = read_header(data)
    if header is DropReason.NOT_AN_IMAGE:
        return header
    if reason := length_drop_reason(len(data), options):
        return reason
    if isinstance(header, DropReason):
        return header
    if reason := size_drop_reason(header.width, header.height, options):
        return reason
    try:
        whole = strip_metadata(data, header.format, header.orientation)
        if options.resize:
            kept = _resized(whole, header, options)
        else:
            kept = _unchanged(whole, header, options.thumbs or 0)
    except _DECODING_ERRORS:
        return DropReason.BROKEN_IMAGE
    return ValidatedImage(
        **kept,
        original_width=header.width,
        original_height=header.height,
        md5=md5(data, usedforsecurity=False).hexdigest(),
        sha1=sha1(data, usedforsecurity=False).hexdigest(),
        sha256=sha256(data).hexdigest(),
    )


def length_drop_reason(length: int, options: Download) -> DropReason | None:
    """Return the reason to drop a file of this many bytes, or None."""
    if length < options.min_bytes:
        return DropReason.TOO_FEW_BYTES
    return DropReason.TOO_MANY_BYTES if length > options.max_bytes else None


def size_drop_reason(width: int, height: int, options: Download) -> DropReason | None:
    """Return the reason to drop a picture of this size in pixels, or None."""
    short, long = sorted((width, height))
    if short < options.min_side:
        return DropReason.SMALL_SIDE
    if width * height > options.max_pixels:
        return DropReason.TOO_MANY_PIXELS
    return DropReason.ASPECT if long > short * options.max_aspect else None


def _open(kept: bytes, header: ImageHeader) -> ImageFile:
    """Open the file that will be stored, as the dataset's readers will."""
    image = _READERS[header.format](BytesIO(kept))
    if image.size != (header.width, header.height):
        raise ValueError("the file has two different sizes")
    image.decodermaxblock = len(kept)  # all at once: in pieces it takes 5 % longer
    return image


def _unchanged(kept: bytes, header: ImageHeader, thumbs: int) -> KeptImage:
    """Validate by decoding; return the bytes unchanged, and a thumb whose side is ``thumbs``."""
    whole = header.width, header.height
    thumbs = thumbs if needs_thumb(whole, thumbs) else 0
    picture, profile = _decoded(kept, header, whole if thumbs else (LOOKS_SIDE, LOOKS_SIDE))
    shown = scaled_for_looks(picture) if thumbs and header.format == "jpg" else picture
    return KeptImage(
        data=kept,
        format=header.format,
        width=header.width,
        height=header.height,
        **looks(shown, profile),
        thumb=make_thumb(picture, profile, thumbs) if thumbs else b"",
    )


def _resized(kept: bytes, header: ImageHeader, options: Download) -> KeptImage:
    """Return an upright image in sRGB, no larger than the options allow, without metadata."""
    bounded = max if options.resize_mode in ("longer", "border") else min
    scale = min(1.0, options.resize / bounded(header.width, header.height))
    size = max(1, round(header.width * scale)), max(1, round(header.height * scale))
    loaded, profile = _decoded(kept, header, size)
    whole = loaded if loaded.mode in ("L", "RGB") else to_srgb(loaded, profile)
    # A much larger picture is averaged first, which needs no copy of all its pixels.
    if (factor := min(whole.width // size[0], whole.height // size[1]) // 2) > 1:
        whole = whole.reduce(factor)
    small = resize_picture(whole, size)
    if loaded.mode in ("L", "RGB"):  # after resizing there are fewer pixels
        small = to_srgb(small, profile)
    small = flatten_on_white(small)
    if header.orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[header.orientation])
    if options.resize_mode in ("crop", "border"):
        small = _squared(small, bounded(small.size))
    out = BytesIO()
    small.save(out, _WRITERS[options.resize_format], quality=options.resize_quality)
    return KeptImage(
        data=out.getvalue(),
        format=options.resize_format,
        width=small.width,
        height=small.height,
        **looks(scaled_for_looks(small), None),
        thumb=b"",  # it is small itself
    )


def _squared(picture: Pillow.Image, edge: int) -> Pillow.Image:
    """Return the middle of a picture as a square, on white where it has no pixels."""
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    if left >= 0 and top >= 0:
        return picture.crop((left, top, left + edge, top + edge))
    square = Pillow.new(picture.mode, (edge, edge), "white")
    square.paste(picture, (-left, -top))
    return square


def _decoded(
    kept: bytes, header: ImageHeader, size: tuple[int, int]
) -> tuple[Pillow.Image, bytes | None]:
    """Return the decoded picture, a JPEG at a scale that suffices for ``size``, and its profile."""
    with _open(kept, header) as image:
        profile = image.info.get("icc_profile")
        if header.format == "jpg" and image.mode != "CMYK":
            return Pillow.fromarray(jpeg.decode_jpeg(kept, image.mode, size)), profile
        if header.format == "jpg":  # Pillow handles CMYK better: Adobe stores it inverted
            jpeg.decode_jpeg(kept)
            image.draft("CMYK", size)
        image.load()
        return image, profile
