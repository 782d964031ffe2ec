"""A picture of any mode as one that every step can work on."""

from __future__ import annotations

from PIL import Image as Picture


def plain(picture: Picture.Image) -> Picture.Image:
    """In a mode that can be scaled: L, RGB, or RGBA where it has transparency."""
    if "transparency" in picture.info or picture.mode in ("LA", "PA"):
        return picture.convert("RGBA")
    if picture.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip
        return picture.convert("I").point([i >> 8 for i in range(65_536)], "L")
    return picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGB")


def opaque(picture: Picture.Image) -> Picture.Image:
    """A plain picture in RGB, on white where it is transparent."""
    if picture.mode != "RGBA":
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    paper = Picture.new("RGB", picture.size, "white")
    paper.paste(picture, mask=picture.getchannel("A"))
    return paper
