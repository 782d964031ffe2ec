"""What is fuzzed: readers of strangers' bytes, each a function that raises nothing of its own.

Each has beginnings, from which a fuzzer goes on: what is garbage from its first byte on would be
refused at once, and prove little.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahlib.core.config import Crawl, Download
from cahlib.core.errors import ConfigError, ShardError
from cahlib.core.lists import DOMAIN, FILE_HASH, MD5, URL, read_entries
from cahlib.core.records import Evidence, Shard, Stage, Stats
from cahlib.core.retry import retry_after
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.candidates import find_candidates
from cahlib.crawl.wat import read_pages
from cahlib.demo import wat as wats
from cahlib.fetch import opt_outs
from cahlib.fetch.robots import RobotsTxt
from cahlib.image.strip_metadata import strip_metadata
from cahlib.image.validate import validate_image
from cahlib.parcel import parcel
from tests.world.pictures import image, picture

_SMALL = Download(max_pixels=100_000, min_bytes=0, min_side=1)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader, and what it is used to reading."""

    read: Callable[[bytes], None]
    beginnings: Sequence[bytes]


def _wat(data: bytes) -> None:
    """All records, packed one by one or as they are; nothing is lost without a reason."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.warc.wat.gz"
        for content in (data, gzip.compress(data, 1)):
            path.write_bytes(content)
            for half in range(2):
                stats = Stats()
                shard = Shard(id="x", url=str(path), half=half)
                with contextlib.suppress(ShardError):
                    found = read_pages(shard, stats)
                    for each in find_candidates(found, Crawl(og_images=True), Blocklists(), stats):
                        each.text.encode(), each.url.encode()
                assert stats.unaccounted(Stage.CHOOSE) == 0


def _robots(data: bytes) -> None:
    rules = RobotsTxt(data.decode("utf-8", "replace"))
    for path in ("/", "/a/b.jpg?c=%20d", "/robots.txt", data[-40:].decode("latin-1")):
        rules.disallowing_line(path)
        rules.training_refusal(path)


def _headers(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for consent in opt_outs.HONOURED:
        opt_outs.parse_headers([(name, text) for name in opt_outs.OPT_OUT_HEADERS], consent)
    opt_outs.parse_tdmrep(data)
    assert retry_after(text) >= 0


def _strip(data: bytes) -> None:
    """What is proven is proven again when it has been stripped."""
    for options in (_SMALL, Download(max_pixels=100_000, min_bytes=0, min_side=1, resize=16)):
        kept = validate_image(data, options)
        if isinstance(kept, dict):
            assert isinstance(validate_image(kept["data"], _SMALL), dict)
    for format in ("jpg", "png", "webp"):
        with contextlib.suppress(ValueError):
            strip_metadata(data, format, 6)


def _parcel() -> tuple[bytes, bytes]:
    """The tar and the manifest of a parcel."""
    with tempfile.TemporaryDirectory() as folder:
        made = parcel.write_parcel([image(0), image(1)], _SHARD, Path(folder), stats=Stats())
        return made.path.read_bytes(), made.path.with_suffix(".json").read_bytes()


_SHARD = Shard(id="s-0", url="http://crawl.example/a.warc.wat.gz", half=0)
_TAR, _MANIFEST = _parcel()


def _tar(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parcel.write_parcel(
            [image(0), image(1)], _SHARD, Path(folder), stats=Stats(), evidence=Evidence()
        )
        (Path(folder) / "s-0.tar").write_bytes(data)
        known = parcel.find_parcel(Path(folder), _SHARD)
        if known is None:  # of another size
            return
        with contextlib.suppress(ShardError):
            parcel.check_parcel(known)
        with contextlib.suppress(ShardError):
            for each in parcel.read_images(known):
                assert each.data
        with contextlib.suppress(ShardError):
            assert len(list(parcel.unpack_outcomes(known))) == known.stats.entered[Stage.FETCH]
        assert len(list(Path(folder).iterdir())) == 2


def _manifest(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "s-0.tar").write_bytes(_TAR)
        (Path(folder) / "s-0.json").write_bytes(data)
        known = parcel.find_parcel(Path(folder), _SHARD)
        assert known is None or known.shard == _SHARD


def _lists(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list"
        path.write_bytes(data)
        for kind in (DOMAIN, URL, MD5, FILE_HASH):
            try:
                for entry in read_entries(str(path), "list", kind):
                    assert entry and "\n" not in entry
            except ConfigError as error:
                assert "\n" not in str(error)


def _page(**html: Any) -> bytes:
    record = {"HTTP-Response-Metadata": {"HTML-Metadata": html}}
    body = json.dumps({"Envelope": {"Payload-Metadata": record}}).encode()
    return gzip.decompress(wats.member("metadata", "http://a.com/", "application/json", body))


_LINK = {"path": "IMG@/src", "url": "a.jpg", "alt": "A photo of an old harbour"}
_METAS = [{"name": "robots", "content": "noai"}, {"property": "og:image", "content": "b.jpg"}]

TARGETS: Mapping[str, Target] = {
    "wat": Target(
        read=_wat,
        beginnings=(
            _page(Links=[_LINK], Head={"Base": "/x/", "Metas": _METAS}),
            gzip.compress(_page(Links=[_LINK]), mtime=0),
        ),
    ),
    "robots": Target(
        read=_robots,
        beginnings=(b"User-agent: cahlib\nDisallow: /a*b$\nAllow: /\nContent-Usage: train-ai=n\n",),
    ),
    "headers": Target(
        read=_headers,
        beginnings=(
            b"otherbot: noai, noindex, unavailable_after: 1 Jan 2030",
            b"train-ai=n;x, bots=y",
            b'[{"location": "/*.jpg$", "tdm-reservation": 1}]',
            b"Wed, 21 Oct 2015 07:28:00 GMT",
        ),
    ),
    "strip": Target(
        read=_strip,
        beginnings=tuple(picture(kind, (40, 30)) for kind in ("JPEG", "PNG", "WEBP")),
    ),
    "tar": Target(read=_tar, beginnings=(_TAR,)),
    "manifest": Target(read=_manifest, beginnings=(_MANIFEST,)),
    "lists": Target(
        read=_lists,
        beginnings=(b"*.bad.com # evil\nhttp://a.com/b.jpg\n" + b"ab" * 16 + b"\n",
                    gzip.compress(b"bad.com\n", mtime=0)),
    ),
}  # fmt: skip
