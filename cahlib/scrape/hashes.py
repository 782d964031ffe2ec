"""Lists of the hashes of files that must not be kept: md5, sha1 and sha256, hex, one a line.

Only hashes are compared; nothing is looked at, and of a match its hash alone is kept. Lists may be
packed with gzip, in any case of letters, and ``#`` begins a comment.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from cahlib.config import Download
from cahlib.scrape.blocklists import Digests, entries
from cahlib.scrape.gate import Picture

#: A line of a list: 32, 40 or 64 hex digits.
LINE = re.compile(r"\s*([0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64})?\s*(?:#.*)?\n?")
_KINDS = {32: "md5", 40: "sha1", 64: "sha256"}


class Hashes:
    """What must not be kept; 10 bytes a hash."""

    def __init__(self, hashes: list[str]) -> None:
        kinds: dict[str, list[bytes]] = {}
        for each in hashes:
            kinds.setdefault(_KINDS[len(each)], []).append(bytes.fromhex(each))
        self._kinds = {kind: Digests(digests) for kind, digests in kinds.items()}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    @classmethod
    def load(cls, options: Download) -> Hashes:
        """The lists of a Job. Raises ConfigError for a file that is no such list."""
        return _loaded(options.blocked_hashes)

    def match(self, data: bytes, picture: Picture) -> str | None:
        """The hash of a file as it was served, if a list has it."""
        for kind, digests in self._kinds.items():
            digest = (
                hashlib.sha1(data, usedforsecurity=False).hexdigest()
                if kind == "sha1"
                else str(picture[kind])  # type: ignore[literal-required]
            )
            if bytes.fromhex(digest) in digests:
                return f"{kind}:{digest}"
        return None


def read(path: str, setting: str) -> set[str]:
    """The hashes of one list, in small letters; raises ConfigError for another file."""
    return {each.lower() for each in entries(path, setting, LINE, "md5, sha1 or sha256 in hex")}


@lru_cache(maxsize=1)
def _loaded(paths: tuple[str, ...]) -> Hashes:
    return Hashes([each for path in paths for each in read(path, "blocked_hashes")])
