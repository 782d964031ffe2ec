"""Tables in text files: JSON lines, CSV, TSV and plain lists of links, packed or not.

A row is read by itself: one that is broken is counted, and the next one is read. A row of CSV may
have line breaks within quotes; in TSV, where quotes are mostly letters, a row is a line.
"""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import SEEK_END, BufferedReader
from itertools import islice
from typing import Any

import msgspec
import regex

from cahlib.core.table_rows import TableRows
from cahlib.crawl.tables.files import UNPACKING_ERRORS, TableError, unpacked

#: Most bytes of a line, and most bytes and lines of a row with line breaks.
_MAX_LINE, _MAX_ROW, _MAX_LINES = 16 << 20, 1 << 20, 100
#: Rows whose values tell the columns of JSON lines and their kinds.
_SAMPLE = 100
_SEPARATORS = ("\t", ",", ";", "|")
_LINK = re.compile(r"https?://\S+")
#: What Python's JSON has beyond the standard's.
_LOOSE = re.compile(rb"NaN|Infinity|\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"

#: The cells of a row; None for a broken one.
Cells = Sequence[Any] | None


#: A row as it stands in the file: its offset, and its bytes; None for a broken one.
_Record = tuple[int, bytes | None]


class Form:
    """The form of the rows in a text file: here, one a line."""

    names: Sequence[str]
    kinds: dict[str, str]
    begin = 0  #: the offset of the first row
    torn = False  #: whether the packed file ended too early

    def records(self, file: BufferedReader, at: int) -> Iterator[_Record]:
        """Yield the rows from an offset on; blank lines are none."""
        try:
            while line := file.readline(_MAX_LINE):
                start, at = at, at + len(line)
                if len(line) == _MAX_LINE and line[-1:] != b"\n":
                    while rest := file.readline(_MAX_LINE):
                        at += len(rest)
                        if rest[-1:] == b"\n":
                            break
                    yield start, None
                elif not line.isspace():
                    yield start, line
        except UNPACKING_ERRORS:
            self.torn = True
            yield at, None

    def cells(self, record: bytes, columns: Sequence[str]) -> Cells:
        """Return the cells of some columns, None for a broken row."""
        raise NotImplementedError


class TextTable:
    """A table of which a row is found by its offset."""

    def __init__(self, open: Callable[[], BufferedReader], form: Form) -> None:
        """``open`` opens the file, packed or not."""
        self._open, self._form = open, form
        self._next = 0  #: the row that `_records` yields next
        self._records: Iterator[_Record] = iter(())
        self.names = form.names

    @property
    def torn(self) -> bool:
        """Return whether the file was found to end too early."""
        return self._form.torn

    def kind(self, name: str) -> str:
        """Return the kind of a column's values."""
        return self._form.kinds.get(name, "text")

    def estimate_rows(self) -> int:
        """Return about how many rows there are: the lines of the first MiB, and so on."""
        lines = read = 0
        with self._open() as packed:
            size = packed.seek(0, SEEK_END)
            packed.seek(0)
            file = unpacked(packed)
            with suppress(*UNPACKING_ERRORS):
                while read < 1 << 20 and (piece := file.read1(1 << 16)):
                    lines, read = lines + piece.count(b"\n"), read + len(piece)
            return round(lines * size / max(packed.tell(), 1)) - (self._form.begin > len(_BOM))

    def ranges(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield the first and the last row of each shard, and the offset of the first."""
        records, first = self._read(self._form.begin), 1
        while chunk := list(islice(records, count)):
            yield first, first + len(chunk) - 1, chunk[0][0]
            first += len(chunk)

    def read(self, rows: TableRows, columns: Sequence[str]) -> Iterator[Cells]:
        """Yield the cells of some rows; those that follow the last ones are not looked for."""
        records = self._records if self._next == rows.first else self._read(rows.byte)
        self._next = 0
        for _, data in islice(records, rows.last - rows.first + 1):
            yield self._form.cells(data, columns) if data is not None else None
        self._records, self._next = records, rows.last + 1

    def _read(self, start: int) -> Iterator[_Record]:
        with self._open() as packed:
            file, left = unpacked(packed), start
            if file is packed:
                left -= file.seek(start)
            try:
                while left and (skipped := file.read1(min(left, 1 << 20))):
                    left -= len(skipped)
            except UNPACKING_ERRORS as error:
                raise TableError("it has fewer rows than before") from error
            yield from self._form.records(file, start)


class JsonLines(Form):
    """An object a line."""

    def __init__(self, head: Sequence[bytes]) -> None:
        """``head``: the first lines; raise TableError if none of them is an object."""
        rows = [row for line in head[:_SAMPLE] if isinstance(row := _json(line), dict)]
        if not rows:
            raise TableError("its first lines are not JSON objects")
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        self.kinds = {name: _common_kind([row.get(name) for row in rows]) for name in self.names}

    def cells(self, record: bytes, columns: Sequence[str]) -> Cells:
        row = _json(record)
        return [row.get(name) for name in columns] if isinstance(row, dict) else None


def _json(line: bytes) -> Any:
    text = line if line.isascii() else decoded(line)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    if not _LOOSE.search(line):
        return None
    try:  # as Python writes it: NaN, Infinity, or half of a character, which becomes U+FFFD
        said = json.dumps(json.loads(text), ensure_ascii=False)
        return json.loads(said.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return None


def _common_kind(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) == 1 and kinds <= {bool, int}:
        return kinds.pop().__name__
    return "float" if kinds and kinds <= {int, float} else "text"


class Delimited(Form):
    """CSV, TSV or a list, with or without a row of names."""

    def __init__(self, separator: str, names: Sequence[str] | None, first: bytes) -> None:
        """``first``: the first line, which has the ``names``, or is a row."""
        self._separator = separator
        self._is_complete = _completeness(separator)
        self.kinds = {}
        self.begin = len(first) if names else len(first) - len(first.removeprefix(_BOM))
        width = len(self._split(first.removeprefix(_BOM)) or ())
        self.names = names or [str(number + 1) for number in range(width)]
        self._places = {name: place for place, name in reversed([*enumerate(self.names)])}

    @classmethod
    def of(cls, first: bytes, is_link_name: Callable[[str], bool]) -> Delimited:
        """Return the form of a file with this first line, by the separator that shows a link.

        Raise TableError if none does.
        """
        head = first.removeprefix(_BOM)
        tried = [(each, cls(each, None, head)._split(head) or []) for each in _SEPARATORS]
        for separator, cells in tried:
            names = [each.strip() for each in cells]
            if any(map(is_link_name, names)) and not any(map(_LINK.fullmatch, names)):
                return cls(separator, names, first)
        with_link = [each for each in tried if any(map(_LINK.fullmatch, each[1]))]
        if not with_link:
            raise TableError(
                f"it has no column of links ({listed(max((c for _, c in tried), key=len))}); name "
                "it with --url-column"
            )
        return cls(max(with_link, key=lambda each: len(each[1]))[0], None, first)

    def link_name(self, first: bytes) -> str:
        """Return the first column that has a link in this row, "" for none."""
        cells = self._split(first.removeprefix(_BOM)) or ()
        pairs = zip(self.names, cells, strict=False)
        return next((name for name, cell in pairs if _LINK.fullmatch(cell)), "")

    def records(self, file: BufferedReader, at: int) -> Iterator[_Record]:
        waiting = deque[_Record]()
        lines = super().records(file, at)
        while True:
            for record in lines:
                start, data = record
                if data is None or b'"' not in data or self._is_complete(data):
                    yield record
                else:
                    waiting.append(record)
                    break
            else:
                return
            while waiting:
                yield self._joined(lines, waiting)

    def _joined(self, lines: Iterator[_Record], waiting: deque[_Record]) -> _Record:
        """Return the first row of ``waiting``, with the lines that it goes on in."""
        (start, data), behind = waiting.popleft(), list[_Record]()
        while data and b'"' in data and not self._is_complete(data):
            if more := waiting.popleft() if waiting else next(lines, None):
                behind.append(more)
            if more and more[1] and len(data) < _MAX_ROW and len(behind) < _MAX_LINES:
                data += more[1]
            else:  # the quote is never closed: only its own line is broken
                waiting.extendleft(reversed(behind))
                data = None
        return start, data

    def cells(self, record: bytes, columns: Sequence[str]) -> Cells:
        found = self._split(record)
        if found is None or len(found) != len(self.names):
            return None
        return [found[self._places[name]] for name in columns]

    def _split(self, record: bytes) -> list[str] | None:
        text = decoded(record).rstrip("\r\n")
        if '"' not in text:
            return text.split(self._separator)
        if self._separator == "\t":
            return [_unquoted(cell) for cell in text.split("\t")]
        try:
            return next(csv.reader((text,), delimiter=self._separator), None)
        except csv.Error:
            return None


def _completeness(separator: str) -> Callable[[bytes], object]:
    """Return a test whether every quote of a row is closed, as `csv` reads them."""
    if separator == "\t":
        return lambda row: True
    mark = regex.escape(separator).encode()
    field = rb'(?>"(?:[^"]|"")*+"[^%b\n]*+|(?!")[^%b]*+)' % (mark, mark)
    return regex.compile(rb"(?>%b(?:%b%b)*+)\n?" % (field, mark, field)).fullmatch


def _unquoted(cell: str) -> str:
    """Return a cell of TSV without the quotes that pandas puts around some."""
    inner = cell[1:-1]
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def decoded(data: bytes) -> str:
    """Return a text in UTF-8, or else in Windows-1252: files are put together from several."""
    for encoding in ("utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            pass
    return data.decode("latin-1")


def listed(names: Sequence[str]) -> str:
    """Return the names of columns for people."""
    shown = ", ".join(" ".join(each.split())[:40] for each in names[:12])
    return shown + (", …" if len(names) > 12 else "")
