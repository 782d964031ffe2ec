"""Does validation tell half pictures from whole ones? JPEGs of many encoders, damaged and odd.

    python -m tests.benchmarks.bench_proof [--files 2000] [--seed 0] [--small]

Half of the files are damaged, the other half are whole and odd in ways that occur on the web and
do no harm. A file counts as damaged if more than 1 % of its pixels differ from those of the
undamaged file. Wanted: none of them is kept, and at most 0.1 % of the others are refused.

What no decoder notices is counted by itself: a stream whose damaged part happens to be another
valid stream of the same length, or nearly (libjpeg-turbo passes over a code that is none where it
is fast: 1 of 600 such files). Files that are cut, or end in zeros, are never among these.
What cannot be proven at all (arithmetic coding, ratios of colours that no common encoder writes)
is refused in any case, and not counted.

The encoders: libjpeg by Pillow, always; cjpeg (Debian's libjpeg-turbo-progs) and mozjpeg's scans
(mozjpeg-lossless-optimization on PyPI) where they are installed.
"""

from __future__ import annotations

import io
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib import import_module, util
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageChops

from cahlib.core.config import Download
from cahlib.core.records import DropReason
from cahlib.image.validate import validate_image
from tests.benchmarks.common import parser

#: All that is whole is wanted, however small.
WANTED = (Download(min_bytes=0, min_side=1), Download(min_bytes=0, min_side=1, resize=64))
EOI = b"\xff\xd9"

Change = Callable[[bytes, random.Random], bytes]


def drawn(chance: random.Random) -> Image.Image:
    """Draw a picture with smooth parts, edges and grain, in a size that few blocks divide."""
    size = chance.randrange(90, 400), chance.randrange(90, 400)
    coarse = Image.frombytes("RGB", (9, 7), chance.randbytes(189)).resize(size, Image.BICUBIC)
    for _ in range(8):
        x, y, side = chance.randrange(size[0]), chance.randrange(size[1]), chance.randrange(8, 90)
        coarse.paste(tuple(chance.randbytes(3)), (x, y, x + side, y + side))
    strength = chance.choice([4, 20, 50])  # not `effect_noise`, which knows no seed
    grain = Image.frombytes("L", size, chance.randbytes(size[0] * size[1]))
    grain = grain.point(lambda value: 128 + (value - 128) * strength // 128).convert("RGB")
    return ImageChops.add(coarse, grain, scale=1, offset=-128)


def saved(picture: Image.Image, mode: str = "RGB", **how: object) -> bytes:
    out = io.BytesIO()
    picture.convert(mode).save(out, "JPEG", **how)
    return out.getvalue()


def encoded(picture: Image.Image, *how: str, scans: str = "") -> bytes:
    """Encode by cjpeg."""
    with tempfile.TemporaryDirectory() as folder:
        picture.save(f"{folder}/in.ppm")
        if scans:
            Path(folder, "scans").write_text(scans)
            how = (*how, "-scans", f"{folder}/scans")
        ran = subprocess.run(["cjpeg", *how, f"{folder}/in.ppm"], capture_output=True, check=True)
    return ran.stdout


def encoders() -> dict[str, Callable[[Image.Image, int], bytes]]:
    """The encoders that this machine has; each takes a picture and a quality."""
    found: dict[str, Callable[[Image.Image, int], bytes]] = {
        "4:2:0": lambda p, q: saved(p, quality=q),
        "4:4:4 optimised": lambda p, q: saved(p, quality=q, subsampling=0, optimize=True),
        "4:2:2": lambda p, q: saved(p, quality=q, subsampling=1),
        "progressive": lambda p, q: saved(p, quality=q, progressive=True),
        "progressive 4:4:4": lambda p, q: saved(p, quality=q, progressive=True, subsampling=0),
        "restarts by rows": lambda p, q: saved(p, quality=q, restart_marker_rows=1),
        "restarts by blocks": lambda p, q: saved(p, quality=q, restart_marker_blocks=7),
        "progressive, restarts": lambda p, q: saved(
            p, quality=q, progressive=True, restart_marker_rows=2
        ),
        "4:0:0": lambda p, q: saved(p, "L", quality=q),
        "4:0:0 progressive": lambda p, q: saved(p, "L", quality=q, progressive=True),
        "CMYK": lambda p, q: saved(p, "CMYK", quality=q),
        "RGB": lambda p, q: saved(p, quality=q, keep_rgb=True),
    }
    if shutil.which("cjpeg"):
        for name, how in {
            "4:1:1": ("-sample", "4x1"),
            "4:4:0": ("-sample", "1x2"),
        }.items():
            found[name] = lambda p, q, how=how: encoded(p, "-quality", str(q), *how)
        found["one scan a colour"] = lambda p, q: encoded(p, scans="0;\n1;\n2;\n")
        found["two scans"] = lambda p, q: encoded(p, scans="0;\n1,2;\n")
    if util.find_spec("mozjpeg_lossless_optimization"):
        mozjpeg = import_module("mozjpeg_lossless_optimization")
        found["mozjpeg"] = lambda p, q: mozjpeg.optimize(saved(p, quality=q))
    return found


def body(data: bytes) -> tuple[int, int]:
    """Where the pixels begin and end."""
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big"), data.rindex(EOI)


def cut(data: bytes, chance: random.Random) -> bytes:
    start, end = body(data)
    return data[: chance.randrange(start, end)]


def span(data: bytes, chance: random.Random, length: int) -> tuple[int, int]:
    start, end = body(data)
    at = chance.randrange(start, max(start + 1, end - length))
    return at, min(at + length, end)


def overwritten(data: bytes, chance: random.Random, filling: Callable[[int], bytes]) -> bytes:
    at, end = span(data, chance, chance.choice([20, 200, 2000]))
    return data[:at] + filling(end - at).replace(b"\xff", b"\xfe") + data[end:]


def flipped(data: bytes, chance: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(chance.choice([1, 3, 10])):
        at, _ = span(data, chance, 1)
        found[at] ^= 1 << chance.randrange(8)
    return bytes(found)


def swapped(data: bytes, chance: random.Random) -> bytes:
    """Two pieces, as a broken file system swaps them."""
    start, end = body(data)
    size = max(1, min(512, (end - start) // 4))
    one, other = sorted(chance.sample(range(start, end - size), 2))
    if other < one + size:
        other = min(one + size, end - size)
    middle = data[one + size : other]
    return (
        data[:one]
        + data[other : other + size]
        + middle
        + data[one : one + size]
        + data[other + size :]
    )


def dropped(data: bytes, chance: random.Random) -> bytes:
    start, end = body(data)
    at, until = span(data, chance, max(2, (end - start) // chance.choice([3, 10, 30])))
    return data[:at] + data[until:]


def without_restarts(data: bytes, chance: random.Random) -> bytes:
    """Some parts between restarts are gone, with their marks."""
    start, _ = body(data)
    marks = [
        found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data) if found.start() > start
    ]
    if len(marks) < 3:
        return cut(data, chance) + EOI
    one, other = sorted(chance.sample(range(len(marks)), 2))
    return data[: marks[one]] + data[marks[other] :]


def scans_missing(data: bytes, chance: random.Random) -> bytes:
    """Cut where a scan begins, or a file with one scan anywhere."""
    start, _ = body(data)
    marks = [found.start() for found in re.finditer(rb"\xff(?:\xc4|\xcc|\xda)", data)]
    marks = [mark for mark in marks if mark > start]
    return (data[: chance.choice(marks)] if marks else cut(data, chance)) + EOI


def zero_tail(data: bytes, chance: random.Random) -> bytes:
    at = len(cut(data, chance))
    return data[:at] + bytes(body(data)[1] - at) + EOI


#: Those that leave traces in every stream, whatever is in it.
SURE: dict[str, Change] = {
    "cut": cut,
    "cut, end mark": lambda data, chance: cut(data, chance) + EOI,
    "cut, end mark, padding": lambda data, chance: cut(data, chance) + bytes(700) + EOI,
    "zeros to the end": zero_tail,
    "scans missing": scans_missing,
}
DAMAGES: dict[str, Change] = {
    **SURE,
    "restarts missing": without_restarts,
    "piece missing": dropped,
    "zeros inside": lambda data, chance: overwritten(data, chance, bytes),
    "other bytes inside": lambda data, chance: overwritten(data, chance, chance.randbytes),
    "bits flipped": flipped,
    "pieces swapped": swapped,
}


def before(marker: bytes, what: Callable[[random.Random], bytes]) -> Change:
    """Put something in front of the first (or of the end's) marker."""

    def changed(data: bytes, chance: random.Random) -> bytes:
        at = data.rindex(marker) if marker == EOI else data.index(marker)
        return data[:at] + what(chance) + data[at:]

    return changed


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (2 + len(content)).to_bytes(2, "big") + content


def aligned(data: bytes, chance: random.Random) -> bytes:
    """Each restart and the end stand at even places, as some cameras write them."""
    start, _ = body(data)
    kept = bytearray(data[:start])
    for piece in re.split(rb"(\xff[\xd0-\xd9])", data[start:]):
        if piece[:1] == b"\xff" and len(piece) == 2 and len(kept) % 2:
            kept += b"\xff"
        kept += piece
    return bytes(kept)


def doubled(data: bytes, chance: random.Random) -> bytes:
    """Its tables come twice."""
    at = data.index(b"\xff\xdb")
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:end] + data[at:end] + data[end:]


def dense(data: bytes, chance: random.Random) -> bytes:
    """Its JFIF has an unknown version and unit."""
    if data[6:11] != b"JFIF\0":
        return data
    return data[:11] + chance.randbytes(1) + b"\x09\x07" + chance.randbytes(4) + data[18:]


HEADER = b"\xff\xdb"
HARMLESS: dict[str, Change] = {
    "as it is": lambda data, chance: data,
    "zeros before the end": before(EOI, lambda chance: bytes(chance.randrange(1, 3000))),
    "few bytes before the end": before(
        EOI, lambda chance: chance.randbytes(chance.randrange(1, 4)).replace(b"\xff", b"")
    ),
    "spaces before the end": before(EOI, lambda chance: b"\x20" * chance.randrange(1, 300)),
    "fill bytes before the end": before(EOI, lambda chance: b"\xff" * chance.randrange(1, 99)),
    "bytes before a header": before(HEADER, lambda c: c.randbytes(9).replace(b"\xff", b"")),
    "fill bytes before a header": before(HEADER, lambda chance: b"\xff" * 5),
    "odd APPn": before(HEADER, lambda c: segment(c.randrange(0xE0, 0xF0), c.randbytes(99))),
    "a thumbnail": before(
        HEADER, lambda c: segment(0xE1, b"Exif\0\0MM\0*" + saved(drawn(c).resize((64, 48))))
    ),
    "a broken profile": before(
        HEADER, lambda c: segment(0xE2, b"ICC_PROFILE\0\1\2" + c.randbytes(400))
    ),
    "a comment": before(HEADER, lambda chance: segment(0xFE, chance.randbytes(50))),
    "bytes behind the end": lambda data, chance: data + chance.randbytes(2000),
    "a second picture": lambda data, chance: data + saved(drawn(chance)),
    "no end mark": lambda data, chance: data[: data.rindex(EOI)],
    "half an end mark": lambda data, chance: data[: data.rindex(EOI) + 1],
    "even places": aligned,
    "tables twice": doubled,
    "an odd JFIF": dense,
}


def pixels(data: bytes) -> np.ndarray:
    """What a lenient decoder shows."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def invented(whole: np.ndarray, data: bytes) -> float:
    """The share of pixels that differ from those of the undamaged file."""
    end = data if data.endswith(EOI) else data + EOI
    try:
        shown = pixels(end)
    except (OSError, SyntaxError, ValueError):
        return 1.0
    if shown.shape != whole.shape:
        return 1.0
    return float((np.abs(whole - shown).max(axis=2) > 8).mean())


def noticed(data: bytes) -> bool:
    """Whether libjpeg warns of a file."""
    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError:
        return True
    return False


def main(arguments: Sequence[str]) -> None:
    made = parser(__doc__, arguments, files=(2000, 60), seed=(0, 0))
    options = made.parse_args(arguments)
    chance = random.Random(options.seed)
    known, tried = encoders(), Counter[str]()
    kept, refused, unnoticed = (defaultdict[str, list[str]](list) for _ in range(3))
    for number in range(options.files):
        name = list(known)[number // 2 % len(known)]
        data = known[name](drawn(chance), chance.choice([40, 75, 92]))
        kinds = HARMLESS if number % 2 else DAMAGES
        kind = chance.choice(list(kinds))
        changed = kinds[kind](data, chance)
        damaged = not number % 2
        if damaged and invented(pixels(data), changed) <= 0.01:
            tried["(too little damage to count)"] += 1
            continue
        tried[kind] += 1
        results = [validate_image(changed, each) for each in WANTED]
        whole = not any(isinstance(each, DropReason) for each in results)
        assert whole or all(isinstance(each, DropReason) for each in results), (name, kind, results)
        if damaged and whole:
            (kept if kind in SURE or noticed(changed) else unnoticed)[kind].append(name)
        elif not damaged and not whole:
            refused[kind].append(name)
    print(f"{sum(tried.values())} files of {len(known)} encoders: {', '.join(known)}\n")
    print(f"{'':30}{'files':>7}{'wrong':>7}{'no decoder notices':>20}")
    for kind in (*DAMAGES, *HARMLESS):
        wrong = kept[kind] + refused[kind]
        told = ", ".join(f"{n} {name}" for name, n in Counter(wrong + unnoticed[kind]).items())
        print(f"{kind:30}{tried[kind]:7}{len(wrong):7}{len(unnoticed[kind]):20}  {told}")
    damaged, whole = (sum(tried[kind] for kind in kinds) for kinds in (DAMAGES, HARMLESS))
    bad, good = (sum(map(len, each.values())) for each in (kept, refused))
    print(f"\nkept of {damaged} damaged: {bad}; refused of {whole} whole: {good}")
    assert bad == 0 and good <= whole / 1000, "wanted: 0 kept, at most 0.1 % refused"


if __name__ == "__main__":
    main(sys.argv[1:])
