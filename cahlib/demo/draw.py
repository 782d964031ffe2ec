"""Makes the demo's pictures: ``python -m cahlib.demo.draw [FOLDER]``.

Each scene shows one thing as the held-out vendor drew it, on a textured ground, and is stored as
JPEG, WebP or PNG with its English name. Faces, animals, food, places, activities and objects
are shown; symbols, letters and hands are not. A fixed seed: the same packages give the same file.

Needs what `cahlib.demo.emoji` needs; FOLDER keeps the npm packages.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cahlib.demo import emoji
from cahlib.demo.world import SCENES

COUNT = 340
SEED = 2021
#: emojibase's groups: smileys, animals, food, travel, activities, objects
_GROUPS = (0, 3, 4, 5, 6, 7)
_NOT_SHOWN = re.compile(
    r".*(o'clock|-thirty|pistol|bomb|cigarette|coffin|poo$|blood|urn|vomit|knife|dagger)"
)

Pixels = NDArray[np.float64]  #: shape (height, width, 3), 0 … 1


def main(folder: Path) -> None:
    """Draw all scenes into the package's archive."""
    random = np.random.default_rng(SEED)
    shown = [
        c for c in emoji.concepts(folder) if c.group in _GROUPS and not _NOT_SHOWN.match(c.label)
    ]
    chosen = sorted(random.permutation(len(shown))[:COUNT])
    names = {}
    with tarfile.open(SCENES, "w") as archive:
        for number, index in enumerate(chosen):
            picture = scene(shown[index].drawings[emoji.HELD_OUT], random)
            kind, data = encoded(picture, random)
            names[f"{number:03}.{kind}"] = shown[index].label
            _add(archive, f"{number:03}.{kind}", data)
        _add(archive, "names.json", json.dumps(names, indent=0).encode())
    print(f"{len(names)} scenes, {SCENES.stat().st_size:,} bytes: {SCENES}")


def scene(svg: str, random: np.random.Generator) -> Image.Image:
    """A drawing somewhere near the middle of a textured ground."""
    width, height = (int(side) for side in random.integers(256, 341, 2))
    ground = GROUNDS[random.integers(len(GROUNDS))](width, height, random)
    ground += random.normal(0, 0.03, (height, width, 1))
    picture = Image.fromarray((ground.clip(0, 1) * 255).astype(np.uint8))
    side = int(min(width, height) * random.uniform(0.6, 0.92))
    drawing = emoji.render(svg, side).rotate(random.uniform(-12, 12), Image.Resampling.BICUBIC)
    left, top = (int((room - side) * random.uniform(0.4, 0.6)) for room in (width, height))
    picture.paste(drawing, (left, top), drawing)
    return picture


def encoded(picture: Image.Image, random: np.random.Generator) -> tuple[str, bytes]:
    """The scene as a file: most are JPEG, as on the web."""
    file = io.BytesIO()
    kind = str(random.choice(["jpg", "webp", "png"], p=[0.8, 0.14, 0.06]))
    if kind == "png":
        picture.resize((256, 256)).quantize(48).save(file, "PNG", optimize=True)
    else:
        name = {"jpg": "JPEG", "webp": "WEBP"}[kind]
        picture.save(file, name, quality=int(random.integers(70, 86)))
    return kind, file.getvalue()


def _gradient(width: int, height: int, random: np.random.Generator) -> Pixels:
    first, second = _colour(random), _colour(random)
    return first + (second - first) * _ramp(width, height, random)[..., None]


def _stripes(width: int, height: int, random: np.random.Generator) -> Pixels:
    first, second = _colour(random), _colour(random)
    waves = np.sin(_ramp(width, height, random) * random.uniform(20, 160)) / 2 + 0.5
    return first + (second - first) * waves[..., None] * random.uniform(0.2, 0.8)


def _clouds(width: int, height: int, random: np.random.Generator) -> Pixels:
    ground = np.full((height, width, 3), _colour(random))
    for cells in (3, 7, 15, 40):
        noise = (random.random((cells, cells, 3)) * 255).astype(np.uint8)
        grown = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        ground += (np.asarray(grown) / 255 - 0.5) * random.uniform(0, 0.35)
    return ground


def _tiles(width: int, height: int, random: np.random.Generator) -> Pixels:
    cell = int(random.integers(12, 50))
    cells = random.random((height // cell + 1, width // cell + 1, 3)) - 0.5
    tiles = np.kron(cells, np.ones((cell, cell, 1)))[:height, :width]
    return _colour(random) + tiles * random.uniform(0.05, 0.3)


def _colour(random: np.random.Generator) -> Pixels:
    """A colour that is not shrill."""
    bright = random.random(3)
    calm: Pixels = bright * 0.45 + bright.mean() * 0.3 + 0.15
    return calm


def _ramp(width: int, height: int, random: np.random.Generator) -> Pixels:
    angle = random.uniform(0, math.tau)
    across = np.linspace(0, 1, width)[None, :] * math.cos(angle)
    ramp: Pixels = across + np.linspace(0, 1, height)[:, None] * math.sin(angle)
    return ramp


GROUNDS: list[Callable[[int, int, np.random.Generator], Pixels]] = [
    _gradient, _stripes, _clouds, _tiles,
]  # fmt: skip


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    emoji.command(main)
