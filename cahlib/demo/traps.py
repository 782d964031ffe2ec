"""Examples of what goes wrong on the web, each with the reason that must catch it.

Used by `cahlib.demo.world`; whoever adds a `cahlib.core.records.DropReason` adds its trap here.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from PIL import Image

from cahlib.core.records import DropReason
from cahlib.demo import MOST_BYTES
from cahlib.demo.web import Answer

#: RFC 2606 keeps these names for examples, so no real host is ever meant.
TRAPS = "traps.example.net"
_FOR_EVER = 3600.0  #: seconds

_KEEP_OUT = b"User-agent: *\nDisallow: /pictures/\n"

_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A link on a page of the demo's web, and what must become of it."""

    url: str  #: absolute, if it can be
    alt: str | None = None  #: as it stands on the page
    text: str = ""  #: the candidate's, if that differs
    written: str = ""  #: the address as it stands on the page, if that differs
    reason: DropReason | None = None  #: why it is lost; None if it is kept
    answers: Mapping[str, Answer | Sequence[Answer]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A good picture with a good caption: the bait."""

    data: bytes
    kind: str  #: "jpg", "png" or "webp"
    caption: str

    @property
    def answer(self) -> Answer:
        return Answer(body=self.data, type=_TYPES[self.kind])


def traps(samples: Iterator[Sample], random: Random) -> Iterator[Exhibit]:
    """All of them, in a fixed order; each that needs a picture takes the next sample."""
    yield from _texts()
    yield from _addresses(samples)
    yield from _servers(samples)
    yield from _files(samples, random)
    yield from _harmless(samples)


def _texts() -> Iterator[Exhibit]:
    """Captions that describe nothing, or not in English."""
    long = "A sentence about nothing in particular that somebody forgot to end. " * 20
    bad: dict[DropReason, Sequence[str | None]] = {
        DropReason.NO_TEXT: (None, "", "   "),
        DropReason.SHORT_TEXT: ("cat", "a b"),
        DropReason.LONG_TEXT: (long,),
        DropReason.FILENAME_TEXT: (
            "DSC_0042.JPG",
            "banner-final-2.png",
            "IMG_20210304_120000.jpeg",
        ),
        DropReason.JUNK_TEXT: ("*** ~~~ --- ***", "1234 5678 9012", "|||||||||||"),
        DropReason.PERSONAL_TEXT: (
            "Write to jane.doe@mail.example.org about the red bicycle",
            "Call +1 212 555 0123 for a fresh chocolate cake",
        ),
        DropReason.LANGUAGE: (
            "Un petit chat noir dort tranquillement sur le canapé de ma grand-mère",
            "Ein altes Fahrrad lehnt an der Mauer hinter unserem kleinen Garten",
            "Los niños juegan al fútbol en la plaza del pueblo todas las tardes",
            "Una tazza di caffè appena fatto sul tavolo della cucina di casa",
            "Um barco de pesca azul descansa na praia ao fim da tarde",
            "Een rode fiets staat tegen het hek naast de oude windmolen",
            "Старый красный трактор стоит во дворе за деревянным домом",
            "桜の花が咲く公園で子供たちが遊んでいます",
        ),
    }
    for reason, alts in bad.items():
        for n, alt in enumerate(alts):
            yield Exhibit(
                url=f"http://{TRAPS}/texts/{reason.value}-{n}.jpg", alt=alt, reason=reason
            )


def _addresses(samples: Iterator[Sample]) -> Iterator[Exhibit]:
    """Addresses that no honest picture has."""
    bad = {
        DropReason.NOT_A_PICTURE_URL: (
            f"http://{TRAPS}/logo.svg",
            f"http://{TRAPS}/spacer.gif",
            f"http://{TRAPS}/favicon.ico",
            "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAE",
            "javascript:void(0)",
        ),
        DropReason.BAD_URL: ("http://[half/a/bracket.jpg", "http://too.example.net:99999/port.jpg"),
        DropReason.LONG_URL: (f"http://{TRAPS}/{'very-' * 500}long.jpg",),
        DropReason.PRIVATE_HOST: (
            "http://localhost/picture.jpg",
            "http://127.0.0.1/picture.jpg",
            "http://192.168.0.10/camera.jpg",
            "http://169.254.169.254/latest/meta-data/picture.jpg",
            "http://[::1]/picture.jpg",
            "http://printer/status.png",
        ),
    }
    for reason, urls in bad.items():
        for url in urls:
            yield Exhibit(url=url, alt=next(samples).caption, reason=reason)


def _servers(samples: Iterator[Sample]) -> Iterator[Exhibit]:
    """Servers that are down, slow, confused, or whose owners say no."""
    text = "text/html"
    for n, status in enumerate((404, 404, 404, 404, 410, 403, 401)):
        answer = Answer(status=status, type=text, body=b"<h1>Gone</h1>")
        yield _trap(next(samples), f"gone-{n}", DropReason.HTTP_4XX, answer)
    for n, status in enumerate((500, 502, 503)):
        yield _trap(
            next(samples), f"down-{n}", DropReason.HTTP_5XX, Answer(status=status, type=text)
        )
    yield _trap(next(samples), "nothing", DropReason.HTTP_OTHER, Answer(status=204))
    for n in range(3):
        yield _trap(next(samples), f"asleep-{n}", DropReason.TIMEOUT, Answer(delay=_FOR_EVER))
    sample = next(samples)
    yield _trap(sample, "dripping", DropReason.TIMEOUT, replace(sample.answer, pace=1.0))
    sample = next(samples)
    yield _trap(sample, "broken-off", DropReason.DISCONNECTED, replace(sample.answer, cut=3000))
    mail = Answer(raw=True, body=b"220 mail.example.net ESMTP\r\n" * 3)
    yield _trap(next(samples), "mail-server", DropReason.BAD_HTTP, mail)
    for n, value in enumerate(("noai", "noimageai, noai", "noindex", "none")):
        sample = next(samples)
        says_no = replace(sample.answer, headers=(("X-Robots-Tag", value),))
        yield _trap(sample, f"owner-says-no-{n}", DropReason.OPTED_OUT, says_no)
    yield from _closed(next(samples), "closed", DropReason.OPTED_OUT, Answer(body=_KEEP_OUT))
    yield from _closed(next(samples), "stumbling", DropReason.NO_ROBOTS, Answer(status=503))
    round_trip = f"http://{TRAPS}/pictures/round-trip.jpg"
    for name, target in (
        ("round-trip", round_trip),
        ("into-the-cloud", "http://169.254.169.254/latest/meta-data/"),
    ):
        moved = Answer(status=302, headers=(("Location", target),))
        yield _trap(next(samples), name, DropReason.BAD_REDIRECT, moved)


def _closed(sample: Sample, name: str, reason: DropReason, robots: Answer) -> Iterator[Exhibit]:
    """A picture of a host whose robots.txt keeps us out."""
    host = f"http://{name}.example.net"
    url = f"{host}/pictures/treasure.jpg"
    answers = {f"{host}/robots.txt": robots, url: sample.answer}
    yield Exhibit(url=url, alt=sample.caption, reason=reason, answers=answers)


def _files(samples: Iterator[Sample], random: Random) -> Iterator[Exhibit]:
    """Files that are no picture, or not a good one."""
    page = b"<!doctype html><title>Sorry</title><p>Please enable cookies.</p>" * 100
    icon = b"<svg xmlns='http://www.w3.org/2000/svg'><path d='M0 0h9v9z'/></svg>" * 100
    files: list[tuple[str, DropReason, bytes]] = [
        ("page", DropReason.NOT_AN_IMAGE, page),
        ("vector", DropReason.NOT_AN_IMAGE, icon),
        ("moving", DropReason.NOT_AN_IMAGE, _noise(random, 100, 100, "GIF")),
        ("old", DropReason.NOT_AN_IMAGE, _noise(random, 100, 100, "BMP")),
        ("huge-file", DropReason.TOO_MANY_BYTES, random.randbytes(MOST_BYTES + 1)),
        ("tiny-file", DropReason.TOO_FEW_BYTES, _noise(random, 8, 8, "PNG")),
        ("empty-file", DropReason.NOT_AN_IMAGE, b""),
        ("low", DropReason.SMALL_SIDE, _noise(random, 300, 48, "PNG")),
        ("narrow", DropReason.SMALL_SIDE, _noise(random, 40, 300, "PNG")),
        ("banner", DropReason.ASPECT, _noise(random, 720, 70, "PNG")),
        ("bomb", DropReason.TOO_MANY_PIXELS, _bomb(random)),
    ]
    for name, reason, data in files:
        yield _trap(next(samples), name, reason, Answer(body=data, type="image/jpeg"))
    for n in range(8):
        sample = next(samples)
        short = replace(sample.answer, body=sample.data[: len(sample.data) * 2 // 3])
        yield _trap(sample, f"cut-short-{n}", DropReason.BROKEN_IMAGE, short)


def _harmless(samples: Iterator[Sample]) -> Iterator[Exhibit]:
    """Yield what looks like trouble but is not: these are kept."""
    sample = next(samples)
    url = f"http://{TRAPS}/moved/old.jpg"
    new = f"http://{TRAPS}/moved/new.jpg"
    moved = Answer(status=301, headers=(("Location", "/moved/new.jpg"),))
    yield Exhibit(url=url, alt=sample.caption, answers={url: moved, new: sample.answer})
    sample = next(samples)
    stumbling = [Answer(status=503), sample.answer]
    url = f"http://{TRAPS}/pictures/stumbling.jpg"
    yield Exhibit(url=url, alt=sample.caption, answers={url: stumbling})
    sample = next(samples)
    yield _trap(sample, "late", None, replace(sample.answer, delay=0.5))
    sample = next(samples)
    yield _trap(sample, "lying-type", None, replace(sample.answer, type="text/html"))
    sample = next(samples)
    url = f"http://{TRAPS}/pictures/mojibake.jpg"
    yield Exhibit(
        url=url,
        alt=f"{sample.caption}, seen at the cafÃ© yesterday",
        text=f"{sample.caption}, seen at the café yesterday",
        answers={url: sample.answer},
    )


def _trap(sample: Sample, name: str, reason: DropReason | None, answer: Answer) -> Exhibit:
    url = f"http://{TRAPS}/pictures/{name}.jpg"
    return Exhibit(url=url, alt=sample.caption, reason=reason, answers={url: answer})


def _noise(random: Random, width: int, height: int, kind: str) -> bytes:
    """A picture of noise, which no format makes smaller."""
    file = io.BytesIO()
    pixels = random.randbytes(width * height)
    Image.frombytes("L", (width, height), pixels).save(file, kind)
    return file.getvalue()


def _bomb(random: Random) -> bytes:
    """A PNG of 6 kB that claims 900 million pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", random.randbytes(6000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
