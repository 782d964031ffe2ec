"""Pictures, candidates and images for tests of the scraper."""

import hashlib
import io
import random
from functools import cache, lru_cache

from PIL import Image as Pillow

from cahlib.core.records import Candidate, Image
from cahlib.image.perceptual_hash import looks_of_file


@cache
def picture(format: str = "JPEG", size: tuple[int, int] = (160, 120), **options: object) -> bytes:
    """A file of noise, which no format makes small: 160 × 120 pixels are over 5 kB in each."""
    mode = str(options.pop("mode", "RGB"))
    noise = random.Random(repr(size)).randbytes(3 * size[0] * size[1])
    file = io.BytesIO()
    Pillow.frombytes("RGB", size, noise).convert(mode).save(file, format, **options)
    return file.getvalue()


_looks = lru_cache(256)(looks_of_file)  # tests compare one picture with many


def phash(data: bytes) -> str:
    return _looks(data)["phash"]


def chroma(data: bytes) -> str:
    return _looks(data)["chroma"]


def candidate(url: str, position: int = 0, text: str = "a picture") -> Candidate:
    return Candidate(
        uid=hashlib.md5((url + text).encode()).hexdigest(),
        position=position,
        url=url,
        text=text,
        raw_text=None,
        page="http://pages.example/",
        licence="?",
        language="en",
        reliable=True,
        source="alt",
    )


def image(position: int, data: bytes | None = None) -> Image:
    data = picture() if data is None else data
    return Image(
        candidate=candidate(f"http://images.example/{position}.jpg", position),
        data=data,
        format="jpg",
        width=160,
        height=120,
        original_width=160,
        original_height=120,
        md5=hashlib.md5(data).hexdigest(),
        sha1=hashlib.sha1(data).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
        robots="",
    )
