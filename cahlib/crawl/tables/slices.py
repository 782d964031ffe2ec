"""The rows of a shard in a file of their own: cut where the table is, read where it is scraped.

Such a file has a JSON array a line, or null for a broken row, so that a machine that scrapes needs
neither the table nor a library for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from cahlib.core.atomic import new_file
from cahlib.core.crawl_settings import Crawl
from cahlib.core.errors import ShardError
from cahlib.core.path_map import local_path
from cahlib.core.records import DropReason, Shard, Stage, Stats
from cahlib.core.table_rows import TableRows, cast_value, parse_rows_url
from cahlib.crawl.source import RETRY_PAUSES, SleepFunction
from cahlib.crawl.tables.files import TableAway, TableError, file_name, reading
from cahlib.crawl.tables.tables import Table, open_table
from cahlib.crawl.wat import BARE_LINK, TABLE_LINK, Link, Page

#: Most characters of a link, and of the extra columns of a row; more are cut, or break the row.
_MAX_LINK, _MAX_EXTRA = 100_001, 100_000

#: Rows that are encoded at a time.
_CHUNK = 1000

_encoder = msgspec.json.Encoder()


class Slices:
    """The slices of a run, cut as their shards begin."""

    def __init__(
        self, folder: Path, contact: str = "", *, sleep: SleepFunction = time.sleep
    ) -> None:
        """``folder`` is theirs alone; those of an earlier launch are deleted."""
        self._folder, self._contact, self._sleep = folder, contact, sleep
        self._table: Table | None = None  #: the last one: its next rows are found at once
        for each in folder.glob("*"):
            each.unlink()

    def cut(
        self, shard: Shard, crawl: Crawl, failed: Callable[[Shard, Exception], object]
    ) -> Crawl | None:
        """Return the settings with which a shard is scraped: they name its slice, if it has one.

        None if its table cannot be read, or has changed; ``failed`` is told of that.
        """
        rows, path = parse_rows_url(shard.url), self.path(shard)
        if rows is None:
            return replace(crawl, links=())
        for pause in (*RETRY_PAUSES[:4], None):
            try:
                self._cut(rows, path, 10 * crawl.max_text + 1)
                return replace(crawl, links=(str(path),))
            except TableError as error:
                self._table = None
                if pause is None or not isinstance(error, TableAway):
                    failed(shard, error)
                    return None
                self._sleep(pause)
        return None

    def drop(self, shard: Shard) -> None:
        """Delete the slice of a shard that has been scraped."""
        self.path(shard).unlink(missing_ok=True)

    def path(self, shard: Shard) -> Path:
        """Return the path of a shard's slice."""
        return self._folder / f"{shard.id}.jsonl"

    def _cut(self, rows: TableRows, path: Path, most: int) -> None:
        table = self._table
        if table is None or table.url != rows.table:
            table = self._table = open_table(rows.table, rows.url_column, contact=self._contact)
        if table.stamp != rows.stamp:
            raise TableError(f"{rows.table} has changed since its shards were listed.")
        columns = [each for each in (rows.url_column, rows.text_column) if each]
        kinds = [kind for kind, _ in rows.extras]
        left = rows.last - rows.first + 1
        with new_file(path, sync=False) as file, reading(rows.table):
            every = table.format.read(rows, [*columns, *(name for _, name in rows.extras)])
            while chunk := [
                _row(each, len(columns), kinds, most) for each in islice(every, _CHUNK)
            ]:
                left -= len(chunk)
                file.write(_encoded(chunk))
        if left:
            raise TableError(f"{rows.table} has fewer rows than when its shards were listed.")


def _row(
    cells: Sequence[Any] | None, texts: int, kinds: Sequence[str], most: int
) -> list[Any] | None:
    """Return a row as a slice has it: link, text if there is one, extras; None for a broken one."""
    if cells is None:
        return None
    url = cells[0] if isinstance(cells[0], str) else ""
    own = [url[:_MAX_LINK]]
    if texts == 2:
        own.append(cells[1][:most] if isinstance(cells[1], str) else "")
    if not kinds:
        return own
    extras = [cast_value(each, kind) for each, kind in zip(cells[texts:], kinds, strict=True)]
    is_long = sum(len(each) for each in extras if isinstance(each, str)) > _MAX_EXTRA
    return None if is_long else own + extras


def _encoded(rows: list[list[Any] | None]) -> bytes:
    """Return rows as lines; those that are no text in any encoding are broken."""
    try:
        return _encoder.encode_lines(rows)
    except UnicodeEncodeError:
        lone = [_encoded([each]) for each in rows] if len(rows) > 1 else [b"null\n"]
        return b"".join(lone)


def read_slice(shard: Shard, path: str, stats: Stats) -> Iterator[Page]:
    """Yield a page for each row of a shard's slice; count broken rows.

    A slice that was brought here from another machine is deleted at its end. The page of a row is
    its table with the fragment ``#row=N``; a path is told without its folder.
    """
    rows = parse_rows_url(shard.url)
    if rows is None:
        raise ShardError(f"{shard.url} names no rows of a table.")
    table = rows.table if "://" in rows.table else file_name(rows.table)
    names = [name for _, name in rows.extras]
    link = TABLE_LINK if rows.text_column else BARE_LINK
    with open(local_path(path), "rb") as file:
        for number, line in enumerate(file, rows.first):
            stats.entered[Stage.READ] += 1
            cells = msgspec.json.decode(line)
            if cells is None:
                stats.dropped[DropReason.BROKEN_RECORD] += 1
                continue
            stats.left[Stage.READ] += 1
            url, text, *extras = cells if rows.text_column else (cells[0], "", *cells[1:])
            yield Page(
                url=f"{table}#row={number}",
                base="",
                links=[Link(link, url, text)],
                metas=[],
                extra=dict(zip(names, extras, strict=True)),
            )
    if local_path(path) != path:
        Path(local_path(path)).unlink(missing_ok=True)
