"""Lists of what to leave out: text files with an entry a line, and sets that hold millions of them.

A file may be packed with gzip, and ``#`` begins a comment. A line of another kind than the list's
shows that it is no such list: it is refused by that line, never passed over.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, cast

from cahlib.errors import ConfigError
from cahlib.places import here


@dataclass(frozen=True, slots=True)
class Kind:
    """What a line of a list is."""

    name: str
    form: re.Pattern[str]


def _kind(name: str, form: str) -> Kind:
    return Kind(name, re.compile(rf"\s*(?:{form})?\s*(?:#.*)?\n?"))


#: "*.bad.com" and ".bad.com" are usual too; and a host may be an IPv6 address.
DOMAIN = _kind("domain", r"\*?\.?([^\s/:@*#]+|[0-9a-fA-F]*:[0-9a-fA-F]*:[0-9a-fA-F:.]*)")
URL = _kind("http or https address", r"(https?://\S+)")
MD5 = _kind("md5", r"([0-9a-fA-F]{32})")
HASH = _kind("md5, sha1 or sha256 in hex", r"([0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64})")
#: 64 bits, as datasets have them in the column phash.
LOOKS = _kind("perceptual hash of 64 bits in hex", r"([0-9a-fA-F]{16})")


def entries(path: str, setting: str, kind: Kind) -> Iterator[str]:
    """What a list holds, without comments; raises ConfigError, which names the setting."""
    for number, line in enumerate(_lines(path, setting), 1):
        match = kind.form.fullmatch(line)
        if not match:
            raise ConfigError(
                f"{setting}: line {number} of {path} is not one {kind.name}: {line.strip():.60}"
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


class Digests:
    """An exact set of digests: 5 million take 50 MB, a tenth of what Python's own set does.

    Of each it keeps 10 bytes, two of them as the name of its bucket; one in 10^17 of others is
    taken for one of 5 million.
    """

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)
        for digest in digests:
            self.add(digest)

    def add(self, digest: bytes) -> None:
        """Put one more in."""
        self._buckets[digest[:2]] += digest[2:10]

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def __contains__(self, digest: bytes) -> bool:
        bucket, key, at = self._buckets.get(digest[:2], b""), digest[2:10], -1
        while (at := bucket.find(key, at + 1)) >= 0:
            if at % 8 == 0:
                return True
        return False


def md5(text: str) -> bytes:
    """The digest under which a text stands in a set."""
    return hashlib.md5(text.encode("utf-8", "replace"), usedforsecurity=False).digest()


class Hashes:
    """Hashes of files in hex: md5, sha1 and sha256, also mixed."""

    def __init__(self, hashes: Iterable[str] = ()) -> None:
        self._digests = Digests(map(bytes.fromhex, hashes))

    def name(self, *hashes: str) -> bool:
        """Whether the file with these hashes is listed by one of them."""
        return bool(self._digests) and any(bytes.fromhex(h) in self._digests for h in hashes)


def hashes(paths: tuple[str, ...], setting: str) -> Hashes:
    """The hashes of some lists; loaded once a process. Raises ConfigError for what is no list."""
    return _hashes(tuple(map(here, paths)), setting)


@lru_cache(maxsize=1)
def _hashes(paths: tuple[str, ...], setting: str) -> Hashes:
    return Hashes(each for path in paths for each in entries(path, setting, HASH))
