"""From the settings to shards: of WAT files by path, URL or a crawl's list, or of tables."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from cahlib.core.config import Crawl
from cahlib.core.errors import ConfigError, RunError, ShardError
from cahlib.core.records import Shard
from cahlib.core.requirements import require_source
from cahlib.crawl.filetype import NotWatError, OtherRecordTypeError, check_wat
from cahlib.crawl.source import RETRY_PAUSES, CrawlFile, MissingFileError, SleepFunction
from cahlib.crawl.tables.listing import list_table_shards, require_unchanged

_CRAWL_NAME = re.compile(r"CC-MAIN-\d{4}-[\w-]+")
#: At the start a user is watching, who should learn soon that there is no network.
_FEW_PAUSES = RETRY_PAUSES[:4]


def list_shards(
    crawl: Crawl,
    *,
    contact: str = "",
    taken: Collection[str] = (),
    known: Callable[[], Iterable[Shard]] = tuple,
    sleep: SleepFunction = time.sleep,
) -> Iterator[Shard]:
    """Return the shards to process: two per WAT file, or rows of tables.

    A seed shuffles the files, always in the same order, so that a later run with more shards
    continues it. Raise ConfigError if there is nothing to read, and RunError if the crawl's list
    cannot be fetched or the server bans this address. ``taken``: names that no extra column of a
    table may have; ``known`` returns the shards of earlier launches, and is asked for tables alone.
    """
    require_source(crawl)
    if crawl.links:
        return require_unchanged(list_table_shards(crawl, contact=contact, taken=taken), known())
    urls = _wat_files(crawl, contact, sleep)
    if crawl.seed:
        random.Random(crawl.seed).shuffle(urls)
    every = (make_shard(url, half) for url in urls for half in (0, 1))
    return islice(every, crawl.shards or None)


def count_shards(crawl: Crawl) -> int:
    """Return the number of shards to process as far as it is known offline; 0 means unknown.

    Raise ConfigError if the setting names files that do not exist, or are not WAT files.
    """
    require_source(crawl)
    if crawl.links or _CRAWL_NAME.fullmatch(crawl.crawl):  # tables would have to be read
        return crawl.shards
    there = 2 * (1 if "://" in crawl.crawl else len(_wat_files(crawl, "", time.sleep)))
    return min(there, crawl.shards or there)


def make_shard(url: str, half: int) -> Shard:
    """Return one half of a WAT file; its id shows the file name and is unique to the URL."""
    stem = PurePosixPath(urlsplit(url).path).name.removesuffix(".gz").removesuffix(".warc.wat")
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", stem)[:100].lstrip(".-") or "wat"
    digest = hashlib.md5(url.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    return Shard(id=f"{safe}-{digest[:8]}-{half}", url=url, half=half)


def _wat_files(crawl: Crawl, contact: str, sleep: SleepFunction) -> list[str]:
    """Return the paths or URLs of the WAT files that the setting names."""
    what = crawl.crawl
    if _CRAWL_NAME.fullmatch(what):
        return _list_crawl(what, crawl.base_url, contact, sleep)
    if "://" in what:
        urls = [_check_url("crawl", what)]
    else:
        urls = _files(what)
    sources = [CrawlFile(url, contact=contact, pauses=_FEW_PAUSES, sleep=sleep) for url in urls]
    if len(sources) == 1:
        _check_only_file(sources[0])
    else:
        _check_record_types(sources)
    return urls


def _files(what: str) -> list[str]:
    """Return the absolute paths of the files that a path or a glob matches."""
    found = [what] if os.path.exists(what) else sorted(glob.glob(what, recursive=True))
    files = [os.path.abspath(path) for path in found if os.path.isfile(path)]
    if files:
        return files
    if found:
        raise ConfigError(
            f"crawl: {what} is a folder; name the files in it, such as {what}/*.wat.gz."
        )
    raise ConfigError(
        f"crawl: {what} is neither a file nor the name of a crawl, such as CC-MAIN-2024-10."
    )


def _check_url(setting: str, url: str) -> str:
    """Return an http(s) URL that a user gave; raise ConfigError if it is not one."""
    try:
        whole = re.fullmatch(r"https?://[!-~]+", url) and urlsplit(url).hostname
    except ValueError:
        whole = None
    if not whole:
        raise ConfigError(f"{setting}: {url} is not an http(s) URL.")
    return url


def _check_only_file(source: CrawlFile) -> None:
    """Raise ConfigError if the only file of a run is missing or not a WAT file."""
    try:
        check_wat(source)
    except (MissingFileError, NotWatError) as error:
        raise ConfigError(f"crawl: {error}") from error
    except ShardError as error:
        raise _offline(error) from error


def _check_record_types(sources: Iterable[CrawlFile]) -> None:
    """Raise ConfigError if a run's file is a WARC or WET file.

    Any other fault of a file affects its own shards only.
    """
    for source in sources:
        try:
            check_wat(source)
        except OtherRecordTypeError as error:
            raise ConfigError(f"crawl: {error}") from error
        except ShardError:
            continue


def _list_crawl(name: str, base_url: str, contact: str, sleep: SleepFunction) -> list[str]:
    """Return the URLs of a crawl's WAT files, from its own list."""
    base = _check_url("base_url", base_url).rstrip("/") + "/"
    url = f"{base}crawl-data/{name}/wat.paths.gz"
    source = CrawlFile(url, contact=contact, pauses=_FEW_PAUSES, sleep=sleep)
    try:
        _, size = source.head()
        packed = b"".join(source.chunks(0, size))
    except MissingFileError as error:
        raise ConfigError(
            f"crawl: there is no crawl {name}; see the list at https://index.commoncrawl.org."
        ) from error
    except ShardError as error:
        raise _offline(error) from error
    try:
        lines = gzip.decompress(packed).decode("ascii").split()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        lines = []
    if not lines or not all(line.endswith(".gz") for line in lines):
        raise ConfigError(f"crawl: {url} is not a list of WAT files; check base_url.")
    return [base + line for line in lines]


def _offline(error: ShardError) -> RunError:
    return RunError(f"{error} Check this machine's network, or try again later.")
