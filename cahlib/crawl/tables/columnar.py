"""Tables in columns: Parquet by its row groups, Arrow by its batches; never a file as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from io import SEEK_END, BufferedReader
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.core.table_rows import TableRows
from cahlib.crawl.tables.files import TableError, unpacked
from cahlib.crawl.tables.text import Cells, decoded

#: Rows that become Python's values at a time.
_BATCH = 1000

_TEXTS = "string", "large_string", "string_view"

#: Bytes of batches by which the rows of a stream are estimated.
_SAMPLE = 8 << 20


class _ColumnTable:
    """A table that is read by batches."""

    torn = False

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self.names: Sequence[str] = schema.names
        self._next = 0  #: the row that `_going` yields next
        self._going: Iterator[pa.RecordBatch] = iter(())  #: batches of one row at least

    def read(self, rows: TableRows, columns: Sequence[str]) -> Iterator[Cells]:
        """Yield the cells of some rows; those that follow the last ones are not looked for."""
        if self._next != rows.first:
            self._going, at = self._batches(rows.first, columns)
            self._going = _without(self._going, rows.first - at)
        self._next, left = 0, rows.last - rows.first + 1
        while left:
            if (batch := next(self._going, None)) is None:
                raise TableError("it has fewer rows than before")
            part = batch.slice(0, left)
            left -= part.num_rows
            if part.num_rows < batch.num_rows:
                self._going = chain([batch.slice(part.num_rows)], self._going)
            for at in range(0, part.num_rows, _BATCH):
                piece = part.slice(at, _BATCH)
                yield from zip(*(_values(piece.column(name)) for name in columns), strict=True)
        self._next = rows.last + 1

    def _batches(self, first: int, columns: Sequence[str]) -> tuple[Iterator[pa.RecordBatch], int]:
        """Return batches to the table's end, and their first row, which is ``first`` at most."""
        raise NotImplementedError

    def kind(self, name: str) -> str:
        """Return the kind of a column's values; "other" for what becomes text as JSON."""
        type = self._schema.field(name).type
        if pa.types.is_dictionary(type):
            type = type.value_type
        if str(type) in _TEXTS:
            return "text"
        if pa.types.is_boolean(type):
            return "bool"
        if pa.types.is_integer(type) and type != pa.uint64():
            return "int"
        return "float" if pa.types.is_floating(type) else "other"


class ParquetTable(_ColumnTable):
    """A Parquet file."""

    def __init__(self, file: BufferedReader) -> None:
        # buffered: else a column of a row group is read as a whole, which may have gigabytes
        self._file = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        super().__init__(self._file.schema_arrow)

    def estimate_rows(self) -> int:
        """Return how many rows there are."""
        return int(self._file.metadata.num_rows)

    def ranges(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield the first and the last row of each shard, and 0."""
        total = self._file.metadata.num_rows
        for first in range(1, total + 1, count):
            yield first, min(first + count - 1, total), 0

    def _batches(self, first: int, columns: Sequence[str]) -> tuple[Iterator[pa.RecordBatch], int]:
        at, group, groups = 1, 0, self._file.metadata.num_row_groups
        while (
            group < groups and at + (size := self._file.metadata.row_group(group).num_rows) <= first
        ):
            at, group = at + size, group + 1
        rest = [*range(group, groups)]
        # group by group: a damaged one fails its own shards alone
        read = partial(self._file.iter_batches, _BATCH, columns=[*set(columns)])
        return chain.from_iterable(read(row_groups=[each]) for each in rest), at


class ArrowTable(_ColumnTable):
    """An Arrow or Feather file, or a stream as `datasets` stores them."""

    def __init__(self, file: BufferedReader, *, stream: bool) -> None:
        """``stream``: it may be packed."""
        self._file, self._stream = file, stream
        self._sizes: dict[int, int] = {}  #: rows of batches, so that they need not be read again
        super().__init__(self._open().schema)

    def estimate_rows(self) -> int:
        """Return about how many rows there are, by the first batches."""
        reader = self._open()
        if not self._stream:
            batches = reader.num_record_batches
            return int(batches * reader.get_batch(0).num_rows) if batches else 0
        rows = size = 0
        for batch in reader:
            rows, size = rows + batch.num_rows, size + batch.nbytes
            if size > _SAMPLE:
                break
        read = self._file.tell()
        return round(rows * self._file.seek(0, SEEK_END) / read)

    def ranges(self, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield the first and the last row of each shard, and 0."""
        first, last = 1, 0
        for batch in self._numbered(0):
            last += batch.num_rows
            while last - first + 1 >= count:
                yield first, first + count - 1, 0
                first += count
        if first <= last:
            yield first, last, 0

    def _batches(self, first: int, columns: Sequence[str]) -> tuple[Iterator[pa.RecordBatch], int]:
        at, number = 1, 0
        while (size := self._sizes.get(number, first)) and at + size <= first:
            at, number = at + size, number + 1
        return self._numbered(number), at

    def _open(self) -> Any:
        self._file.seek(0)
        if self._stream:
            return pa.ipc.open_stream(unpacked(self._file))
        return pa.ipc.open_file(self._file)

    def _numbered(self, start: int) -> Iterator[pa.RecordBatch]:
        """Yield the batches from one on."""
        reader = self._open()
        if self._stream:
            yield from islice(reader, start, None)
            return
        for number in range(start, reader.num_record_batches):
            batch = reader.get_batch(number)
            self._sizes[number] = batch.num_rows
            yield batch


def _without(batches: Iterator[pa.RecordBatch], skip: int) -> Iterator[pa.RecordBatch]:
    """Yield batches without their first rows."""
    for batch in batches:
        if skip < batch.num_rows:
            yield batch.slice(skip)
        skip = max(0, skip - batch.num_rows)


def _values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # Parquet stores bytes, whatever its schema says of them
        cells = column.cast(pa.binary()).to_pylist()
        return [None if each is None else decoded(each) for each in cells]
