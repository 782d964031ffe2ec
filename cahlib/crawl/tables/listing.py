"""From the setting ``links`` to shards: each a range of rows, the same on every machine."""

from __future__ import annotations

import hashlib
import logging
import random
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, islice

from cahlib.core.crawl_settings import Crawl
from cahlib.core.errors import ConfigError
from cahlib.core.records import Shard
from cahlib.core.table_rows import TableRows, parse_rows_url
from cahlib.crawl.tables.files import TableError, file_name, find_files, reading, unreadable
from cahlib.crawl.tables.tables import open_table

#: Tables that are looked at for an estimate; others are taken to be like these.
_LOOKED_AT = 20

_log = logging.getLogger(__name__)


def list_table_shards(
    crawl: Crawl, *, contact: str = "", taken: Collection[str] = ()
) -> Iterator[Shard]:
    """Yield the shards of the tables that a setting names, in the order of files and rows.

    A seed draws them at random, always in the same order. ``taken``: as for `find_columns`. Raise
    ConfigError for what cannot be read, at once for all tables but for the order of their rows.
    """
    try:
        columns = [  # one open file at a time: there may be thousands
            open_table(url, crawl.url_column, contact=contact).find_columns(crawl, taken)
            for url in find_files(crawl.links)
        ]
    except TableError as error:
        raise unreadable(error) from error
    _require_same_columns(columns)
    every = (shard for each in columns for shard in _shards(each, crawl.shard_links, contact))
    if crawl.seed:
        drawn = list(every)
        random.Random(crawl.seed).shuffle(drawn)
        every = (shard for shard in drawn)
    first = list(islice(every, 1))
    if not first:
        raise _no_row_error(crawl)
    return islice(chain(first, every), crawl.shards or None)


def require_unchanged(listed: Iterable[Shard], known: Iterable[Shard]) -> Iterator[Shard]:
    """Yield shards; raise ConfigError for those of a table that changed since others were made."""
    stamps = {rows.table: rows.stamp for each in known if (rows := parse_rows_url(each.url))}
    for shard in listed:
        rows = parse_rows_url(shard.url)
        if rows and stamps.get(rows.table, rows.stamp) != rows.stamp:
            raise ConfigError(
                f"links: {rows.table} has changed since this dataset was begun; put the old table "
                "back, or begin another dataset."
            )
        yield shard


def estimate_rows(crawl: Crawl, *, contact: str = "", taken: Collection[str] = ()) -> Sequence[int]:
    """Return about how many rows each table has; nothing if that would take longer than a moment.

    So it is for tables elsewhere. Raise as `list_table_shards` does, but for those that are looked
    at: some, or one if they are elsewhere.
    """
    if not crawl.links:
        return ()
    files, away = find_files(crawl.links), any("://" in each for each in crawl.links)
    columns, found, rows = list[TableRows](), list[int](), False
    try:
        for url in files[: 1 if away else _LOOKED_AT]:
            table = open_table(url, crawl.url_column, contact=contact)
            columns.append(table.find_columns(crawl, taken))
            with reading(url):
                found.append(max(1, table.format.estimate_rows()))
                rows = rows or any(True for _ in islice(table.format.ranges(1), 1))
    except TableError as error:
        raise unreadable(error) from error
    _require_same_columns(columns)
    if not rows and len(found) == len(files):
        raise _no_row_error(crawl)
    return () if away else found + [sum(found) // len(found)] * (len(files) - len(found))


def _require_same_columns(columns: Sequence[TableRows]) -> None:
    for other in columns[1:]:
        if other.columns != columns[0].columns:
            raise ConfigError(
                f"links: {other.table} has different columns from {columns[0].table} "
                f"({_shown(other)} instead of {_shown(columns[0])}); make a dataset of each."
            )


def _no_row_error(crawl: Crawl) -> ConfigError:
    return ConfigError(f"links: there are no rows in {', '.join(crawl.links)}.")


def _shards(like: TableRows, count: int, contact: str) -> Iterator[Shard]:
    stem = file_name(like.table).partition(".")[0]
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:100].lstrip("-") or "links"
    same = hashlib.md5(f"{like.stamp} {like.columns} {count}".encode(), usedforsecurity=False)
    last = 0
    try:
        table = open_table(like.table, like.url_column, contact=contact)
        for number, rows in enumerate(table.shards(like, count)):
            yield Shard(id=f"{safe}-{same.hexdigest()[:8]}-{number:05}", url=rows.url, half=0)
            last = rows.last
    except TableError as error:
        raise unreadable(error) from error
    if table.format.torn:
        _log.warning("%s is cut off or damaged; its first %d rows are read.", table.url, last - 1)


def _shown(columns: TableRows) -> str:
    names = (columns.url_column, columns.text_column, *(name for _, name in columns.extras))
    return ", ".join(each for each in names if each)
