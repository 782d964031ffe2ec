"""Lists of what to leave out: domains, and pairs by their hashes.

A list of domains is text, one a line; it holds for their subdomains too. A list of pairs is text
with a hex md5 of url + text a line. Both may be packed with gzip, and ``#`` begins a comment. For
hundreds of millions of pairs there are Bloom filters, in files that end in ``.bloom``: `save_bloom`
makes them.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, cast
from urllib.parse import urlsplit

import rbloom

from cahlib.config import Crawl
from cahlib.errors import ConfigError

# a line of a list, with what it holds as its first group; "*.bad.com" and ".bad.com" are usual too
_MD5 = re.compile(r"\s*([0-9a-fA-F]{32})?\s*(?:#.*)?\n?")
_DOMAIN = re.compile(r"\s*(?:\*?\.?([^\s/:@*#]+))?\s*(?:#.*)?\n?")


class Digests:
    """An exact set of md5 digests: 5 million take 50 MB, a tenth of what Python's own set does.

    Of each it keeps 10 bytes, two of them as the name of its bucket; one in 10^17 of other pairs is
    taken for one of 5 million.
    """

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)
        for digest in digests:
            self._buckets[digest[:2]] += digest[2:10]

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def __contains__(self, digest: bytes) -> bool:
        bucket, key, at = self._buckets.get(digest[:2], b""), digest[2:10], -1
        while (at := bucket.find(key, at + 1)) >= 0:
            if at % 8 == 0:
                return True
        return False


class Blocklists:
    """What a crawl leaves out; loaded once a process."""

    def __init__(
        self,
        domains: Iterable[str] = (),
        pairs: Iterable[str] = (),
        filters: Iterable[rbloom.Bloom] = (),
    ) -> None:
        self._domains = Digests(_md5(_ascii(domain)) for domain in domains)
        self._pairs = Digests(bytes.fromhex(pair) for pair in pairs)
        self._filters = tuple(filters)

    @classmethod
    def load(cls, options: Crawl) -> Blocklists:
        """The lists that a crawl names. Raises ConfigError for a file that is no such list."""
        return _loaded(options.blocked_domains, options.blocked_pairs)

    def domain(self, url: str) -> bool:
        """Whether the host of an address, or a domain above it, is blocked."""
        if not self._domains:
            return False
        host = _ascii(urlsplit(url).hostname or "")
        while host:
            if _md5(host) in self._domains:
                return True
            host = host.partition(".")[2]
        return False

    def pair(self, uid: str) -> bool:
        """Whether a pair is blocked, by the hex md5 of its url + text."""
        if self._pairs and bytes.fromhex(uid) in self._pairs:
            return True
        return any(uid in each for each in self._filters)


def save_bloom(path: Path, uids: Iterable[str], *, expected: int, false_share: float) -> None:
    """Write a Bloom filter of pairs; ``false_share`` of all others will be left out with them.

    200 million pairs at 0.001 take 360 MB, on disk and in each scraping process.
    """
    bloom = rbloom.Bloom(expected, false_share, _bloom_hash)
    bloom.update(uids)
    bloom.save(str(path))


def _bloom_hash(uid: str) -> int:
    """The 128 bits, with a sign, that rbloom wants; Python's own hash differs with each process."""
    return int.from_bytes(bytes.fromhex(uid), "big", signed=True)


@lru_cache(maxsize=1)
def _loaded(domains: tuple[str, ...], pairs: tuple[str, ...]) -> Blocklists:
    return Blocklists(
        domains=(
            each for path in domains for each in entries(path, "blocked_domains", _DOMAIN, "domain")
        ),
        pairs=(
            each
            for path in pairs
            if not path.endswith(".bloom")
            for each in entries(path, "blocked_pairs", _MD5, "md5")
        ),
        filters=[_filter(path) for path in pairs if path.endswith(".bloom")],
    )


def domains(path: str) -> set[str]:
    """The domains of one list; raises ConfigError for another file."""
    return set(entries(path, "blocked_domains", _DOMAIN, "domain"))


def entries(path: str, setting: str, form: re.Pattern[str], kind: str) -> Iterator[str]:
    """What a list holds, without comments; a line of another form shows that it is no such list."""
    for number, line in enumerate(_lines(path, setting), 1):
        match = form.fullmatch(line)
        if not match:
            raise ConfigError(
                f"{setting}: line {number} of {path} is not one {kind}: {line.strip():.60}"
            )
        if entry := match[1]:
            yield entry


def _lines(path: str, setting: str) -> Iterator[str]:
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with cast(IO[str], (gzip.open if packed else open)(path, "rt", encoding="utf-8")) as lines:
            yield from lines
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"{setting}: {path} cannot be read as a list: {error}.") from error


def _filter(path: str) -> rbloom.Bloom:
    try:
        return rbloom.Bloom.load(path, _bloom_hash)
    except (OSError, ValueError) as error:
        raise ConfigError(f"blocked_pairs: {path} is not a Bloom filter: {error}.") from error


def _ascii(host: str) -> str:
    """A host's name as DNS has it: small letters, others than ASCII in punycode."""
    host = host.lower().strip(".")
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def _md5(text: str) -> bytes:
    return hashlib.md5(text.encode("utf-8", "replace"), usedforsecurity=False).digest()
