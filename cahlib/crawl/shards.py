"""From what a user wants to read to shards: paths, URLs, or a crawl's list of WAT files."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import random
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from cahlib.config import Crawl
from cahlib.crawl.filetype import NotWatError, OtherRecordTypeError, check_wat
from cahlib.crawl.source import RETRY_PAUSES, CrawlFile, MissingFileError, SleepFunction
from cahlib.errors import ConfigError, RunError, ShardError
from cahlib.needs import reading
from cahlib.records import Shard

_CRAWL = re.compile(r"CC-MAIN-\d{4}-[\w-]+")
#: At the start somebody is watching, who would rather hear soon that there is no network.
_SHORT = RETRY_PAUSES[:4]


def list_shards(
    crawl: Crawl, *, contact: str = "", sleep: SleepFunction = time.sleep
) -> Iterator[Shard]:
    """The shards of a crawl that are to be worked through, two a WAT file.

    With a seed the files come in an order that the seed draws, so asking for more later goes on in
    the same order. Raises ConfigError if there is nothing to read, and RunError if the crawl's
    list cannot be fetched or the server bans us.
    """
    urls = _wats(crawl, contact, sleep)
    if crawl.seed:
        random.Random(crawl.seed).shuffle(urls)
    every = (make_shard(url, half) for url in urls for half in (0, 1))
    return islice(every, crawl.shards or None)


def make_shard(url: str, half: int) -> Shard:
    """One half of a WAT file; its id tells the file, and differs from that of any other URL."""
    stem = PurePosixPath(urlsplit(url).path).name.removesuffix(".gz").removesuffix(".warc.wat")
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", stem)[:100].lstrip(".-") or "wat"
    digest = hashlib.md5(url.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    return Shard(id=f"{safe}-{digest[:8]}-{half}", url=url, half=half)


def _wats(crawl: Crawl, contact: str, sleep: SleepFunction) -> list[str]:
    """The WAT files that a setting means."""
    reading(crawl)
    what = crawl.crawl
    if _CRAWL.fullmatch(what):
        return _listed(what, crawl.base_url, contact, sleep)
    if "://" in what:
        urls = [_url("crawl", what)]
    else:
        urls = _files(what)
    sources = [CrawlFile(url, contact=contact, pauses=_SHORT, sleep=sleep) for url in urls]
    if len(sources) == 1:
        _look(sources[0])
    else:
        _refuse_others(sources)
    return urls


def _files(what: str) -> list[str]:
    """The files that a path or a glob means, as absolute paths."""
    found = [what] if os.path.exists(what) else sorted(glob.glob(what, recursive=True))
    files = [os.path.abspath(path) for path in found if os.path.isfile(path)]
    if files:
        return files
    if found:
        raise ConfigError(f"crawl: {what} is a folder; name the files in it, as {what}/*.wat.gz.")
    raise ConfigError(
        f"crawl: there is no file {what}, and it is not a crawl's name like CC-MAIN-2024-10."
    )


def _url(setting: str, url: str) -> str:
    """An http(s) URL that a user gave, as it is."""
    try:
        whole = re.fullmatch(r"https?://[!-~]+", url) and urlsplit(url).hostname
    except ValueError:
        whole = None
    if not whole:
        raise ConfigError(f"{setting}: {url} is not an http(s) URL.")
    return url


def _look(source: CrawlFile) -> None:
    """Refuse the only file of a run at once if it is none, or no WAT file."""
    try:
        check_wat(source)
    except (MissingFileError, NotWatError) as error:
        raise ConfigError(f"crawl: {error}") from error
    except ShardError as error:
        raise _offline(error) from error


def _refuse_others(sources: Iterable[CrawlFile]) -> None:
    """Raise ConfigError if one of a run's files is another kind of file of a crawl.

    What else is wrong with a file costs its shards alone.
    """
    for source in sources:
        try:
            check_wat(source)
        except OtherRecordTypeError as error:
            raise ConfigError(f"crawl: {error}") from error
        except ShardError:
            continue


def _listed(name: str, base_url: str, contact: str, sleep: SleepFunction) -> list[str]:
    """The WAT files of a crawl, from its own list."""
    base = _url("base_url", base_url).rstrip("/") + "/"
    url = f"{base}crawl-data/{name}/wat.paths.gz"
    source = CrawlFile(url, contact=contact, pauses=_SHORT, sleep=sleep)
    try:
        _, size = source.head()
        packed = b"".join(source.chunks(0, size))
    except MissingFileError as error:
        raise ConfigError(
            f"crawl: there is no crawl {name}; https://index.commoncrawl.org lists those there are."
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
