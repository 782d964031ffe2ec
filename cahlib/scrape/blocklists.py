"""Lists of what to leave out: domains, and pairs by their hashes.

A list of domains is text, one a line; it holds for their subdomains too. A list of pairs is text
with a hex md5 of url + text a line (both may be packed with gzip, and ``#`` begins a comment), or
a Bloom filter of rbloom's whose name ends in ``.bloom`` and whose hash is `pair_hash`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cahlib.config import Crawl
from cahlib.errors import ConfigError

_MD5 = re.compile(r"[0-9a-fA-F]{32}")
_DOMAIN = re.compile(r"[^\s/:@]+")


class Blocklists:
    """What a crawl leaves out; loaded once a process.

    Five million hashes take 40 MB: of each its first 64 bits are kept, so one pair in 4 × 10^12 is
    left out though its hash is not in the list.
    """

    def __init__(
        self, domains: Iterable[str] = (), pairs: Iterable[str] = (), filters: Iterable[Any] = ()
    ) -> None:
        self._domains = frozenset(domains)
        self._pairs = array("Q", sorted(_prefix(pair) for pair in pairs))
        self._filters = tuple(filters)

    @classmethod
    def load(cls, options: Crawl) -> Blocklists:
        """The lists that a crawl names. Raises ConfigError for a file that is no such list."""
        return _loaded(options.blocked_domains, options.blocked_pairs)

    def domain(self, url: str) -> bool:
        """Whether the host of an address, or a domain above it, is blocked."""
        if not self._domains:
            return False
        host = urlsplit(url).hostname or ""
        while host:
            if host in self._domains:
                return True
            host = host.partition(".")[2]
        return False

    def pair(self, uid: str) -> bool:
        """Whether a pair is blocked, by the md5 of its url + text."""
        prefix = _prefix(uid)
        at = bisect_left(self._pairs, prefix)
        if at < len(self._pairs) and self._pairs[at] == prefix:
            return True
        return any(uid in each for each in self._filters)


def pair_hash(uid: str) -> int:
    """The 128-bit hash by which our Bloom filters know a pair: its md5, the same on every machine.

    Make one with ``rbloom.Bloom(200_000_000, 1e-6, pair_hash)``.
    """
    return int.from_bytes(bytes.fromhex(uid), "big", signed=True)


@lru_cache(maxsize=1)
def _loaded(domains: tuple[str, ...], pairs: tuple[str, ...]) -> Blocklists:
    return Blocklists(
        domains=(each for path in domains for each in _domains(path)),
        pairs=(each for path in pairs if not path.endswith(".bloom") for each in _hashes(path)),
        filters=[_filter(path) for path in pairs if path.endswith(".bloom")],
    )


def _domains(path: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, "blocked_domains"), 1):
        if not _DOMAIN.fullmatch(line):
            raise ConfigError(f"blocked_domains: line {number} of {path} is no domain: {line:.60}")
        yield line.lower().strip(".")


def _hashes(path: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path, "blocked_pairs"), 1):
        if not _MD5.fullmatch(line):
            raise ConfigError(f"blocked_pairs: line {number} of {path} is no md5: {line:.60}")
        yield line


def _lines(path: str, setting: str) -> Iterator[str]:
    """The lines of a list without comments and blank ones."""
    try:
        opened = gzip.open if Path(path).read_bytes()[:2] == b"\x1f\x8b" else open
        with opened(path, "rt", encoding="utf-8") as file:
            for line in file:
                if content := line.partition("#")[0].strip():
                    yield content
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"{setting}: {path} cannot be read as a list: {error}.") from error


def _filter(path: str) -> Any:
    import rbloom

    try:
        return rbloom.Bloom.load(path, pair_hash)
    except (OSError, ValueError) as error:
        raise ConfigError(f"blocked_pairs: {path} is not a Bloom filter: {error}.") from error


def _prefix(uid: str) -> int:
    return int(uid[:16], 16)
