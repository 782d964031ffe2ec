"""Lists of what to leave out: text files with an entry a line, and sets that hold millions of them.

A file may be packed with gzip and be UTF-8 or UTF-16, with or without a byte order mark; ``#``
begins a comment. Lists of domains may have the forms of ad blockers (``||bad.com^``) and of hosts
files (``0.0.0.0 bad.com``) where they say the same as a plain entry. A line of another kind than
the list's shows that it is no such list: it is refused by that line, never passed over.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from cahlib.core.errors import ConfigError
from cahlib.core.path_map import here

#: Characters that are not seen: never part of an entry, but pasted into many. The two joiners
#: are part of some names (Persian, Indic), so they go at the ends alone.
_UNSEEN = dict.fromkeys(
    (0xAD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
)
_JOINERS = "\u200c\u200d"

#: A comment; ``##``, ``#@#`` and so on behind a name are an ad blocker's rules about its pages.
_COMMENT = r"(?:#(?![#@?$%]).*|(?:\A|\s)#.*)?"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a line of a list is."""

    name: str
    form: re.Pattern[str]
    #: Other forms that say the same; a match without groups is a line that says nothing.
    others: tuple[re.Pattern[str], ...] = ()


def _form(form: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{form})?\s*{_COMMENT}")


#: Letters of other scripts, but none of their brackets, quotation marks, commas and the like.
_LETTER = r"[a-zA-Z0-9_\u0080-\U0010ffff-]"
_NAME = rf"(?!-){_LETTER}{{1,63}}(?:[.\u3002\uff0e\uff61]{_LETTER}{{1,63}})+\.?"
#: Categories and characters of Unicode that stand in no domain.
_NO_LETTERS = frozenset({"Ps", "Pe", "Pi", "Pf", "Sm", "Sc", "Cc", "Co", "Cs", "Zs", "Zl", "Zp"})
_NO_LETTER = frozenset(
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2026\u3001\uff01\uff02\uff07\uff0c\uff0f\uff1a\uff1b\uff1f"
)

DOMAIN = Kind(
    "domain",
    # "*.bad.com" and ".bad.com" are usual too, ".ru" is a whole one; a host may be an IPv6 address
    _form(
        rf"(?:\*?\.)?({_NAME}|(?<=\.)(?!-){_LETTER}{{2,63}}"
        r"|[0-9a-fA-F]*:[0-9a-fA-F]*:[0-9a-fA-F:.]*)"
    ),
    (
        re.compile(r"!.*|\[ad-?block[^\]]*\]", re.IGNORECASE),
        re.compile(rf"\|\|({_NAME})\^(?:\$(?:all|important|document)(?:,(?:all|important))*)?"),
        re.compile(
            r"(?:127\.0\.0\.1|255\.255\.255\.255|::1|f[ef][0-9a-f:]+(?:%\w+)?|0\.0\.0\.0|::)"
            r"(?:\s+(?:localhost(?:\.localdomain)?|local|broadcasthost|0\.0\.0\.0|ip6-[a-z]+))+"
            r"\s*(?:#.*)?"
        ),
        re.compile(rf"(?:0\.0\.0\.0|127\.0\.0\.1|::1?)((?:\s+{_NAME})+)\s*(?:#.*)?"),
    ),
)
URL = Kind(
    "http or https address",
    _form(r"""([hH][tT]{2}[pP][sS]?://(?!\S*[,;|"']https?://)[^\s/?#,;"'<>]+(?:[/?#]\S*)?)"""),
)
MD5 = Kind("md5", _form(r"([0-9a-fA-F]{32})"))
HASH = Kind(
    "md5, sha1 or sha256 in hex", _form(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64})")
)
#: 64 bits, as datasets have them in the column phash.
LOOKS = Kind("perceptual hash of 64 bits in hex", _form(r"([0-9a-fA-F]{16})"))


def entries(path: str, setting: str, kind: Kind) -> Iterator[str]:
    """Return what a list holds, without comments; raise ConfigError, which names the setting."""
    with closing(_lines(path, setting)) as lines:
        for number, line in enumerate(lines, 1):
            match = kind.form.fullmatch(line)
            if not match:
                match = next((m for other in kind.others if (m := other.fullmatch(line))), None)
            if not match or (match.re.groups and kind is DOMAIN and _strange(match[1])):
                raise ConfigError(
                    f"{setting}: line {number} of {path} is not one {kind.name}: {line:.60}"
                )
            if match.re.groups and match[1]:
                yield from match[1].split()


def _strange(name: str | None) -> bool:
    """Return whether what looks like a domain has characters that no domain has."""
    odd = "" if name is None or name.isascii() else "".join(name.split())
    return any(each in _NO_LETTER or unicodedata.category(each) in _NO_LETTERS for each in odd)


def _lines(path: str, setting: str) -> Generator[str, None, None]:
    """Return the lines of a list, without what is not seen in them."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with cast(io.BufferedReader, (gzip.open if packed else open)(path, "rb")) as raw:
            wide = raw.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            with io.TextIOWrapper(raw, "utf-16" if wide else "utf-8") as lines:
                for line in lines:
                    if not line.isascii():
                        line = line.translate(_UNSEEN).strip().strip(_JOINERS)
                    yield line.strip()
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
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
