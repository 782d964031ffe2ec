"""Blocklists of a crawl: domains, URLs, and pairs by their hashes.

The files are those of `cahlib.core.lists`. A domain covers its subdomains; a pair is given by the
hex md5 of url + text. Hosts and URLs are compared in normalized form, however they are spelled.
For hundreds of millions of pairs there are Bloom filters, in files that end in ``.bloom``;
`save_bloom` makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import rbloom

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError, describe_read_error
from cahlib.core.lists import DOMAIN, MD5, URL, DigestSet, md5_digest, read_entries
from cahlib.core.path_map import local_path
from cahlib.core.records import DropReason
from cahlib.fetch.urls import host_of, normalize_url


class Blocklists:
    """The blocklists of a crawl; loaded once per process."""

    def __init__(
        self,
        domains: Iterable[str] = (),
        urls: Iterable[str] = (),
        pairs: Iterable[str] = (),
        filters: Iterable[rbloom.Bloom] = (),
    ) -> None:
        self._domains = DigestSet(md5_digest(_normalized_domain(domain)) for domain in domains)
        self._urls = DigestSet(md5_digest(normalize_url(url.partition("#")[0])) for url in urls)
        self._pairs = DigestSet(bytes.fromhex(pair) for pair in pairs)
        self._filters = tuple(filters)

    @classmethod
    def load(cls, options: Crawl) -> Blocklists:
        """Return the lists that a crawl names; raise ConfigError if a file is not such a list."""
        lists = (options.blocked_domains, options.blocked_urls, options.blocked_pairs)
        return _loaded(*(tuple(map(local_path, paths)) for paths in lists))

    def url_drop_reason(self, url: str) -> DropReason | None:
        """Return the reason to drop a URL, by itself or by a domain of its host, or None."""
        if self._urls and md5_digest(normalize_url(url)) in self._urls:
            return DropReason.BLOCKED_URL
        return DropReason.BLOCKED_DOMAIN if self._is_blocked_host(url) else None

    def _is_blocked_host(self, url: str) -> bool:
        if not self._domains:
            return False
        host = host_of(url)
        while host:
            if md5_digest(host) in self._domains:
                return True
            host = host.partition(".")[2]
        return False

    def has_pair(self, uid: str) -> bool:
        """Return whether a pair is blocked, given the hex md5 of its url + text."""
        if self._pairs and bytes.fromhex(uid) in self._pairs:
            return True
        return bool(self._filters) and any(uid in each for each in self._filters)


def save_bloom(path: Path, uids: Iterable[str], *, expected: int, false_share: float) -> None:
    """Write a Bloom filter of pairs; it also matches a share ``false_share`` of all others.

    200 million pairs at 0.001 take 360 MB, on disk and in each scraping process.
    """
    bloom = rbloom.Bloom(expected, false_share, _bloom_hash)
    bloom.update(uids)
    bloom.save(str(path))


def _bloom_hash(uid: str) -> int:
    """Return the signed 128-bit hash that rbloom wants; `hash` differs between processes."""
    return int.from_bytes(bytes.fromhex(uid), "big", signed=True)


@lru_cache(maxsize=1)
def _loaded(domains: tuple[str, ...], urls: tuple[str, ...], pairs: tuple[str, ...]) -> Blocklists:
    return Blocklists(
        domains=(
            each for path in domains for each in read_entries(path, "blocked_domains", DOMAIN)
        ),
        urls=(each for path in urls for each in read_entries(path, "blocked_urls", URL)),
        pairs=(
            each
            for path in pairs
            if not path.endswith(".bloom")
            for each in read_entries(path, "blocked_pairs", MD5)
        ),
        filters=[_load_bloom(path) for path in pairs if path.endswith(".bloom")],
    )


def _load_bloom(path: str) -> rbloom.Bloom:
    try:
        return rbloom.Bloom.load(path, _bloom_hash)
    except (OSError, ValueError) as error:
        cause = describe_read_error(error)
        raise ConfigError(f"blocked_pairs: {path} is not a Bloom filter ({cause}).") from error


def _normalized_domain(domain: str) -> str:
    """Return a domain of a list in the form of `host_of`."""
    domain = domain.lower().strip(".")
    if ":" in domain:
        return host_of(f"http://[{domain}]") or domain
    number = domain.rpartition(".")[2][:1].isdigit()  # an IPv4 address, which has many spellings
    return domain if domain.isascii() and not number else host_of(f"http://{domain}") or domain
