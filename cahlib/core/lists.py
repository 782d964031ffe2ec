"""Blocklists: text files with one entry per line, and sets that hold millions of entries.

A file may be compressed with gzip, and be UTF-8 or UTF-16, with or without a byte order mark; ``#``
begins a comment. Lists of domains may use the syntax of ad blockers (``||bad.com^``) and of hosts
files (``0.0.0.0 bad.com``) where it means the same as a plain entry. A line of another kind means
that the file is not such a list: it is rejected, naming the line, never skipped.
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

from cahlib.core.errors import ConfigError, describe_read_error
from cahlib.core.path_map import local_path

#: Invisible characters: never part of an entry, but often pasted with it. The two joiners occur in
#: some names (Persian, Indic), so they are stripped only at the ends.
_UNSEEN = dict.fromkeys(
    (0xAD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
)
_JOINERS = "\u200c\u200d"

#: A comment; ``##``, ``#@#`` and so on after a name are an ad blocker's rules about its pages.
_COMMENT = r"(?:#(?![#@?$%]).*|(?:\A|\s)#.*)?"


@dataclass(frozen=True, slots=True)
class ListKind:
    """The kind of entry in a list."""

    name: str
    form: re.Pattern[str]
    #: Other forms with the same meaning; a match without groups is a line without an entry.
    others: tuple[re.Pattern[str], ...] = ()


def _form(form: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{form})?\s*{_COMMENT}")


#: Letters of other scripts, but none of their brackets, quotation marks, commas and the like.
_LETTER = r"[a-zA-Z0-9_\u0080-\U0010ffff-]"
_NAME = rf"(?!-){_LETTER}{{1,63}}(?:[.\u3002\uff0e\uff61]{_LETTER}{{1,63}})+\.?"
#: Unicode categories and characters that never occur in a domain.
_NO_LETTERS = frozenset({"Ps", "Pe", "Pi", "Pf", "Sm", "Sc", "Cc", "Co", "Cs", "Zs", "Zl", "Zp"})
_NO_LETTER = frozenset(
    "\u2010\u2011\u2012\u2013\u2014\u2015\u2026\u3001\uff01\uff02\uff07\uff0c\uff0f\uff1a\uff1b\uff1f"
)

DOMAIN = ListKind(
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
URL = ListKind(
    "http or https address",
    _form(r"""([hH][tT]{2}[pP][sS]?://(?!\S*[,;|"']https?://)[^\s/?#,;"'<>]+(?:[/?#]\S*)?)"""),
)
MD5 = ListKind("md5", _form(r"([0-9a-fA-F]{32})"))
FILE_HASH = ListKind(
    "md5, sha1 or sha256 in hex", _form(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64})")
)
#: 64 bits, as in a dataset's column phash.
PERCEPTUAL_HASH = ListKind("perceptual hash of 64 bits in hex", _form(r"([0-9a-fA-F]{16})"))

#: A whole line, as ``#`` occurs within phrases.
PHRASE = ListKind("word or phrase", re.compile(r"((?!#).+)?|#.*"))


def read_entries(path: str, setting: str, kind: ListKind) -> Iterator[str]:
    """Yield a list's entries without comments; raise ConfigError, which names the setting."""
    with closing(_lines(path, setting)) as lines:
        for number, line in enumerate(lines, 1):
            match = kind.form.fullmatch(line)
            if not match:
                match = next((m for other in kind.others if (m := other.fullmatch(line))), None)
            if not match or (match.re.groups and kind is DOMAIN and _strange(match[1])):
                raise ConfigError(
                    f"{setting}: line {number} of {path} is not a valid {kind.name}: {line:.60}"
                )
            if match.re.groups and match[1]:
                yield from (match[1],) if kind is PHRASE else match[1].split()


def _strange(name: str | None) -> bool:
    """Return whether an apparent domain has characters that never occur in one."""
    odd = "" if name is None or name.isascii() else "".join(name.split())
    return any(each in _NO_LETTER or unicodedata.category(each) in _NO_LETTERS for each in odd)


def _lines(path: str, setting: str) -> Generator[str, None, None]:
    """Yield the lines of a list, without invisible characters."""
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
        cause = describe_read_error(error)
        raise ConfigError(f"{setting}: {path} cannot be read as a list ({cause}).") from error


class DigestSet:
    """A compact set of digests: 5 million take 50 MB, a tenth of what a Python set takes.

    It keeps 10 bytes of each, two of them as the name of its bucket. With 5 million entries, one in
    10^17 lookups is a false positive.
    """

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)
        for digest in digests:
            self.add(digest)

    def add(self, digest: bytes) -> None:
        """Add a digest."""
        self._buckets[digest[:2]] += digest[2:10]

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def __contains__(self, digest: bytes) -> bool:
        bucket, key, at = self._buckets.get(digest[:2], b""), digest[2:10], -1
        while (at := bucket.find(key, at + 1)) >= 0:
            if at % 8 == 0:
                return True
        return False


def md5_digest(text: str) -> bytes:
    """Return the digest of a text, as a `DigestSet` holds it."""
    return hashlib.md5(text.encode("utf-8", "replace"), usedforsecurity=False).digest()


class HashSet:
    """A set of file hashes in hex: md5, sha1 and sha256, also mixed."""

    def __init__(self, hashes: Iterable[str] = ()) -> None:
        self._digests = DigestSet(map(bytes.fromhex, hashes))

    def has_any(self, *hashes: str) -> bool:
        """Return whether one of a file's hashes is in the set."""
        return bool(self._digests) and any(bytes.fromhex(h) in self._digests for h in hashes)


def load_hashes(paths: tuple[str, ...], setting: str) -> HashSet:
    """Return the hashes of some lists, loaded once per process; raise ConfigError."""
    return _hashes(tuple(map(local_path, paths)), setting)


@lru_cache(maxsize=1)
def _hashes(paths: tuple[str, ...], setting: str) -> HashSet:
    return HashSet(each for path in paths for each in read_entries(path, setting, FILE_HASH))
