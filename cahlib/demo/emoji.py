"""The emoji drawings that the tiny CLIP learns from, and those it is examined on.

Several vendors drew the same concepts. Five of them are for training, the sixth is held out, so
that what is measured is whether the model knows a *concept*, not a file. Left out are drawings that
differ by a few pixels only (skin tones, men and women at the same work, families), and country
flags, which the training vendors lack.

Only `cahlib.demo.train` and `cahlib.demo.draw` need this file; it needs npm, the network and
``pip install resvg-py``. A demo, a run or a test never does.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from cahlib.core.errors import RunError

TRAINING = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "fxemoji")
HELD_OUT = "twemoji"
#: Pinned: the same drawings give the same model. Licences are in NOTICE.
PACKAGES = (
    "@iconify-json/noto@1.2.9",
    "@iconify-json/noto-v1@1.2.5",
    "@iconify-json/fluent-emoji@1.2.7",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/fxemoji@1.2.2",
    "@iconify-json/twemoji@1.2.5",
    "emojibase-data@17.0.0",
)
_ALIKE = re.compile(r"flag: |(fe)?male sign|.*: facing right")
_JOINED = re.compile(r"(wo)?man|person|family|kiss|couple")  #: in sequences of several characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A thing that several vendors drew."""

    label: str  #: its English name, without typographic signs
    group: int  #: emojibase's: 0 smileys, 1 people, 3 animals, 4 food, 5 travel …
    drawings: Mapping[str, str]  #: by vendor: SVG


def command(work: Callable[[Path], None]) -> None:
    """Do a program's work on the folder that its command line names, or on a temporary one."""
    with ExitStack() as stack:
        folder = Path(sys.argv[1] if sys.argv[1:] else stack.enter_context(TemporaryDirectory()))
        try:
            _install(folder)
            work(folder)
        except RunError as error:
            sys.exit(str(error))


def concepts(folder: Path) -> Iterator[Concept]:
    """The concepts that the held-out vendor and at least two others drew, in Unicode's order."""
    packages = folder / "node_modules"
    sets = {name: _Set(packages / "@iconify-json" / name) for name in (*TRAINING, HELD_OUT)}
    entries = json.loads((packages / "emojibase-data/en/data.json").read_text(encoding="utf-8"))
    for entry in sorted(entries, key=lambda each: int(each.get("order", 0))):
        if "group" not in entry or "gender" in entry or _alike(entry):
            continue
        drawings = {name: svg for name, each in sets.items() if (svg := each.find(entry))}
        if HELD_OUT in drawings and len(drawings) >= 3:
            label = _plain(entry["label"])
            yield Concept(label=label, group=entry["group"], drawings=drawings)


def _alike(entry: Mapping[str, Any]) -> bool:
    if "200D" in entry["hexcode"] and _JOINED.match(entry["label"]):
        return True
    return bool(_ALIKE.match(entry["label"]))


def render(svg: str, side: int) -> Image.Image:
    """A drawing as an RGBA square of `side` pixels."""
    try:
        import resvg_py
    except ImportError as error:
        raise RunError("Emoji cannot be drawn; type: pip install resvg-py") from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((side, side))


def _install(folder: Path) -> None:
    """Put the packages into a folder, unless they are there already."""
    if (folder / "node_modules/emojibase-data").is_dir():
        return
    flags = ("--no-audit", "--no-fund", "--ignore-scripts", "--no-save")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", *flags, "--prefix", str(folder), *PACKAGES], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunError(f"The emoji could not be fetched with npm: {error}") from error


class _Set:
    """One vendor's icons, found by code point where the package knows it, else by name."""

    def __init__(self, package: Path) -> None:
        self.icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
        self.by_code = json.loads((package / "chars.json").read_text(encoding="utf-8"))
        names = [*self.icons["icons"], *self.icons.get("aliases", {})]
        self.by_name = {name.replace("-", ""): name for name in names}

    def find(self, entry: Mapping[str, Any]) -> str | None:
        code = entry["hexcode"].lower()
        name = self.by_code.get(code) or self.by_code.get(code.replace("-fe0f", ""))
        for key in (entry["label"], _unicode_name(entry["emoji"])):
            name = name or self.by_name.get(_slug(key))
        return self._svg(name) if name else None

    def _svg(self, name: str) -> str:
        while name in self.icons.get("aliases", {}):
            name = self.icons["aliases"][name]["parent"]
        icon = self.icons["icons"][name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", self.icons.get("width", 16))
        height = icon.get("height", self.icons.get("height", 16))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )


def _unicode_name(emoji: str) -> str:
    """Unicode's own name of a single character: fxemoji's files are named after it."""
    characters = emoji.rstrip("\ufe0f")
    return unicodedata.name(characters, "") if len(characters) == 1 else ""


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]", "", _plain(name).lower())


def _plain(label: str) -> str:
    """A label in ASCII: "piñata" is "pinata", “here” has straight quotes."""
    for typographic, plain in ("’'", '“"', '”"', "–-"):
        label = label.replace(typographic, plain)
    letters = unicodedata.normalize("NFKD", label)
    return letters.encode("ascii", "ignore").decode()
