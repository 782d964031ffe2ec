"""Re-encode images as JPEG, so that all samples of a dataset have the same extension."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

from PIL import Image as Pillow
from PIL import ImageOps

from cahlib.core.records import Image
from cahlib.image.colours import to_srgb
from cahlib.image.pixels import flatten_on_white

#: As with `--resize`.
_QUALITY = 95

#: The longest side that libjpeg supports.
_SIDE = 65_500


def reencode_as_jpeg(image: Image) -> Image:
    """Return the image as an upright JPEG in sRGB, on white; a JPEG is returned as it is."""
    if image.format == "jpg":
        return image
    with Pillow.open(BytesIO(image.data)) as opened:
        opened.load()
        upright = ImageOps.exif_transpose(opened)
        picture = flatten_on_white(to_srgb(upright, opened.info.get("icc_profile")))
    picture.thumbnail((_SIDE, _SIDE))
    out = BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY)
    return replace(
        image, data=out.getvalue(), format="jpg", width=picture.width, height=picture.height
    )
