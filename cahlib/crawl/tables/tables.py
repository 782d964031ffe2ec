"""One table of links: its file's format, its columns, and the rows of its shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from typing import Protocol
from weakref import finalize

from cahlib.core.crawl_settings import NO_TEXT, Crawl
from cahlib.core.errors import ConfigError
from cahlib.core.table_rows import TableRows
from cahlib.crawl.tables.files import (
    END,
    UNPACKING_ERRORS,
    TableError,
    file_name,
    open_file,
    read_ends,
    reading,
    unpacked,
    unpacked_copy,
)
from cahlib.crawl.tables.text import Cells, Delimited, JsonLines, TextTable, listed

#: Names that columns of links and of texts have, best first; compared in lower case.
URL_NAMES = ("url", "image_url", "imageurl", "img_url", "image_link", "src")
TEXT_NAMES = ("text", "caption", "alt", "alt_text", "top_caption", "title", "description")


#: How files begin that are read from their end: Parquet, Feather.
_FROM_THE_END = b"PAR1", b"ARROW1"

#: How files begin that are packed as no table is.
_PACKINGS = {
    b"BZh": "it is packed with bzip2; pack it with gzip or zstd",
    b"\xfd7zXZ": "it is packed with xz; pack it with gzip or zstd",
    b"PK\x03\x04": "it is a zip file or a spreadsheet; unpack it, or store it as CSV",
}


class Format(Protocol):
    """The way in which the rows of a file are found and read."""

    names: Sequence[str]  #: of the columns

    @property
    def torn(self) -> bool: ...

    def kind(self, name: str) -> str: ...

    def estimate_rows(self) -> int: ...

    def ranges(self, count: int) -> Iterator[tuple[int, int, int]]: ...

    def read(self, rows: TableRows, columns: Sequence[str]) -> Iterator[Cells]: ...


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose file is open for as long as somebody refers to this."""

    url: str
    stamp: str  #: as in `TableRows`
    format: Format
    guess: str = ""  #: the column of links of a table without names

    def shards(self, like: TableRows, count: int) -> Iterator[TableRows]:
        """Yield the rows of each shard of ``count`` rows, with the columns of ``like``."""
        with reading(self.url):
            for first, last, byte in self.format.ranges(count):
                yield TableRows(
                    table=self.url,
                    first=first,
                    last=last,
                    byte=byte,
                    stamp=self.stamp,
                    url_column=like.url_column,
                    text_column=like.text_column,
                    extras=like.extras,
                )

    def find_columns(self, crawl: Crawl, taken: Collection[str]) -> TableRows:
        """Return the columns to read, of no row yet; raise ConfigError if they cannot be found.

        ``taken``: names that an extra column must not have.
        """
        names = {*self.format.names}
        url = self._column("url_column", crawl.url_column, URL_NAMES) or self.guess
        if not url:
            raise ConfigError(
                f"links: {self.url} has no column of links ({listed(self.format.names)}); name it "
                "with --url-column."
            )
        text = ""
        if crawl.text_column != NO_TEXT:
            text = self._column("text_column", crawl.text_column, TEXT_NAMES)
            if not text and self.guess and len(names) == 2:
                (text,) = names - {url}
            if not text:
                raise ConfigError(
                    f"links: {self.url} has no column of captions ({listed(self.format.names)}); "
                    "name it with --text-column, or give --text-column none --no-judge."
                )
        extras = [each for each in self.format.names if each not in (url, text)]
        if crawl.extra_columns != ("all",):
            extras = list(crawl.extra_columns)
        if lacking := [each for each in extras if each not in names]:
            raise self._no_column("extra_columns", lacking[0])
        self._check_single(extras)
        if clash := [each for each in extras if each in taken]:
            free = ",".join(each for each in extras if each not in clash)
            raise ConfigError(
                f"extra_columns: {listed(clash)} of {file_name(self.url)} would be there twice, "
                "for each dataset has columns of these names; "
                + (f"choose others, such as {free}." if free else "choose others.")
            )
        kinds = ((self.format.kind(each), each) for each in extras)
        return TableRows(
            table=self.url,
            first=0,
            last=0,
            byte=0,
            stamp=self.stamp,
            url_column=url,
            text_column=text,
            extras=tuple(("text" if kind == "other" else kind, name) for kind, name in kinds),
        )

    def _column(self, setting: str, given: str, usual: Sequence[str]) -> str:
        """Return the column that was given, or the first of the usual ones, "" if none is there."""
        if given and given not in self.format.names:
            raise self._no_column(setting, given)
        by_name = {name.strip().lower(): name for name in reversed(self.format.names)}
        found = given or next((by_name[each] for each in usual if each in by_name), "")
        self._check_single([found])
        if found and self.format.kind(found) != "text":
            raise ConfigError(
                f"{setting}: the column {found} of {self.url} does not hold text; name another."
            )
        return found

    def _check_single(self, names: Sequence[str]) -> None:
        """Raise ConfigError if one of these columns is there, or wanted, more than once."""
        for every in (self.format.names, names):
            counts = Counter(each for each in every if each in names)
            if twice := [each for each, count in counts.items() if count > 1]:
                raise ConfigError(
                    f"links: {self.url} has several columns {listed(twice)}; give each a name."
                    if every is self.format.names
                    else f"extra_columns: {listed(twice)} is named twice."
                )

    def _no_column(self, setting: str, name: str) -> ConfigError:
        return ConfigError(
            f"{setting}: {self.url} has no column {name}; it has {listed(self.format.names)}."
        )


def open_table(url: str, url_column: str = "", *, contact: str = "") -> Table:
    """Open a table by path or URL; raise TableError if it cannot be read."""
    with reading(url), ExitStack() as opened:
        file = opened.enter_context(open_file(url, contact))
        head, stamp = read_ends(file)
        try:
            if not head:
                raise TableError("it is empty")
            if (inner := unpacked(file)) is not file:
                head = _head(inner)
                if head.startswith(_FROM_THE_END):
                    file = opened.enter_context(unpacked_copy(file))
            format, guess = _format(url, file, head, url_column, contact)
        except TableError as error:
            said = str(error).rstrip(".")
            raise TableError(f"{url} cannot be read as a table: {said}.") from error
        table = Table(url=url, stamp=stamp, format=format, guess=guess)
        finalize(table, opened.pop_all().close)
        return table


def _head(file: BufferedReader) -> bytes:
    """Return the beginning of an unpacked file, as much as there is."""
    head = b""
    with suppress(*UNPACKING_ERRORS):
        while len(head) < END and (piece := file.read1(END)):
            head += piece
    return head


def _format(
    url: str, file: BufferedReader, head: bytes, url_column: str, contact: str
) -> tuple[Format, str]:
    """Return a file's format, and the column of links if the file does not name its columns."""
    if head.startswith(_FROM_THE_END):
        from cahlib.crawl.tables.columnar import ArrowTable, ParquetTable

        return ParquetTable(file) if head[:4] == b"PAR1" else ArrowTable(file, stream=False), ""
    if head[:4] == b"\xff\xff\xff\xff":
        from cahlib.crawl.tables.columnar import ArrowTable

        return ArrowTable(file, stream=True), ""
    name = file_name(url).lower().removesuffix(".gz").removesuffix(".zst")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise TableError("it is UTF-16; store it as UTF-8")
    if other := next((said for mark, said in _PACKINGS.items() if head.startswith(mark)), ""):
        raise TableError(other)
    if b"\0" in head or name.endswith((".parquet", ".arrow", ".feather")):
        raise TableError("it is damaged, or not Parquet, CSV, TSV, JSON or Arrow")
    return _text_format(url, head, url_column, contact)


def _text_format(url: str, head: bytes, url_column: str, contact: str) -> tuple[Format, str]:
    lines = [each for each in BytesIO(head) if not each.isspace()]
    if not lines:
        raise TableError("it is empty")
    if lines[0].lstrip()[:1] == b"[":
        raise TableError("it is a single JSON array; store one object per line")
    known = {*URL_NAMES, url_column.lower()}
    form = (
        JsonLines(lines)
        if lines[0].lstrip()[:1] == b"{"
        else Delimited.of(lines[0], lambda name: name.lower() in known)
    )
    guess = form.link_name(lines[0]) if isinstance(form, Delimited) else ""
    return TextTable(lambda: open_file(url, contact), form), guess
