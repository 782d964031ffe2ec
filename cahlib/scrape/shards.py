"""From what a user wants to read to shards: paths, URLs, or a crawl's list of WAT files."""

from __future__ import annotations

import glob
import gzip
import hashlib
import random
import re
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from cahlib.config import Crawl
from cahlib.errors import ConfigError, ShardError
from cahlib.records import Shard
from cahlib.scrape.source import Missing, Sleep, Source

_CRAWL = re.compile(r"CC-MAIN-\d{4}-[\w-]+")


def shards(crawl: Crawl, *, contact: str = "", sleep: Sleep = time.sleep) -> Iterator[Shard]:
    """The shards of a crawl that are to be worked through, two a WAT file.

    With a seed the files are in an order that the seed draws, so asking for more later goes on in
    the same order. Raises ConfigError if there is nothing to read, and RunError if the server bans
    us.
    """
    urls = _wats(crawl, contact, sleep)
    if crawl.seed:
        random.Random(crawl.seed).shuffle(urls)
    every = (shard(url, half) for url in urls for half in (0, 1))
    return islice(every, crawl.shards or None)


def shard(url: str, half: int) -> Shard:
    """One half of a WAT file; its id tells the file, and differs from that of any other URL."""
    stem = PurePosixPath(urlsplit(url).path).name.removesuffix(".gz").removesuffix(".warc.wat")
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", stem)[:100].lstrip(".") or "wat"
    digest = hashlib.md5(url.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return Shard(id=f"{safe}-{digest}-{half}", url=url, half=half)


def _wats(crawl: Crawl, contact: str, sleep: Sleep) -> list[str]:
    """The WAT files that a setting means."""
    what = crawl.crawl
    if not what:
        raise ConfigError(
            "crawl: say what to read: a crawl's name (CC-MAIN-2024-10), or a WAT file by path, "
            "glob or URL."
        )
    if _CRAWL.fullmatch(what):
        return _listed(what, crawl.base_url, contact, sleep)
    if what.startswith(("http://", "https://")):
        return [what]
    if "://" in what:
        raise ConfigError(f"crawl: {what} is neither a path nor an http(s) URL.")
    found = [what] if Path(what).is_file() else sorted(glob.glob(what, recursive=True))
    files = [str(Path(path).absolute()) for path in found if Path(path).is_file()]
    if not files:
        raise ConfigError(
            f"crawl: there is no file {what}, and it is not a crawl's name like CC-MAIN-2024-10."
        )
    return files


def _listed(name: str, base_url: str, contact: str, sleep: Sleep) -> list[str]:
    """The WAT files of a crawl, from its own list."""
    base = base_url.rstrip("/") + "/"
    source = Source(f"{base}crawl-data/{name}/wat.paths.gz", contact=contact, sleep=sleep)
    try:
        data = b"".join(source.pieces(0, source.size()))
        lines = gzip.decompress(data).decode("ascii").split()
    except Missing as error:
        raise ConfigError(
            f"crawl: there is no crawl {name}; https://index.commoncrawl.org lists those there are."
        ) from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"crawl: {source.url} is not a list of WAT files.") from error
    except ShardError as error:
        raise ConfigError(f"crawl: {error} Is this machine online?") from error
    return [base + line for line in lines]
