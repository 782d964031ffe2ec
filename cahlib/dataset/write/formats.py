"""Writers of a shard's files: WebDataset tar, parquet table, embedding matrix.

Each writes into a `HashedFile`, front to back. The same pairs give the same bytes. Nothing here
knows what a dataset consists of, or when a shard is complete.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Collection
from functools import cache
from io import BytesIO
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.core.errors import disk_errors
from cahlib.core.records import Judged
from cahlib.dataset.storage.hashed_file import HashedFile
from cahlib.dataset.write.columns import Row, canonical_json, fill_nulls

#: The bounds of what `tar_header` writes itself, and the rights of a file.
_LONGEST_NAME, _LARGEST_SIZE, _MODE = 100, 8**11, 0o444

#: Rows per parquet batch: some MiB of memory, and large enough to compress well.
_ROWS = 1000


class FormatWriter(Protocol):
    """A writer of one form of a shard's pairs."""

    def add(self, pair: Judged, row: Row) -> None:
        """Append a pair."""

    def close(self) -> None:
        """Write what is still buffered."""


class WebDatasetWriter:
    """A WebDataset tar: ``<uid>.<format>``, ``<uid>.json`` and ``<uid>.txt`` per pair."""

    def __init__(self, file: HashedFile, *, without: Collection[str] = ()) -> None:
        """``without`` are columns that its samples do not have."""
        self._file, self._without = file, frozenset(without)

    def add(self, pair: Judged, row: Row) -> None:
        image = pair.image
        if self._without:
            row = {name: value for name, value in row.items() if name not in self._without}
        self._member(f"{row['uid']}.{image.format}", image.data)
        self._member(f"{row['uid']}.json", canonical_json(fill_nulls(row)))
        self._member(f"{row['uid']}.txt", row["TEXT"].encode())

    def close(self) -> None:
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))

    def _member(self, name: str, data: bytes) -> None:
        self._file.write(tar_header(name, len(data)))
        self._file.write(data)
        self._file.write(bytes(-len(data) % tarfile.BLOCKSIZE))


def tar_header(name: str, size: int) -> bytes:
    """Return the header of a tar's member, the same as `tarfile` makes.

    There are no times and no owners, so that the same pairs give the same file.
    """
    if len(name) > _LONGEST_NAME or not name.isascii() or size >= _LARGEST_SIZE:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, _MODE
        return info.tobuf(tarfile.USTAR_FORMAT)
    # 3 microseconds in place of 19: three per pair, of some 200 that rewriting takes
    header = bytearray(_blank_header())
    header[: len(name)], header[124:135] = name.encode(), b"%011o" % size
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


@cache
def _blank_header() -> bytes:
    """Return the header of an empty member without a name, with a blank checksum."""
    info = tarfile.TarInfo("")
    info.mode = _MODE
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header[:148] + b" " * 8 + header[156:]


class ParquetWriter:
    """The metadata as parquet, compressed in memory: some 200 bytes per pair."""

    def __init__(self, file: HashedFile, schema: pa.Schema) -> None:
        self._file, self._schema = file, schema
        self._rows: list[Row] = []
        # pyarrow's writer writes a footer even when it is discarded, so it never sees the disk.
        self._buffer = BytesIO()
        self._writer = pq.ParquetWriter(self._buffer, schema, compression="zstd")

    def add(self, pair: Judged, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
        self._file.write(self._buffer.getvalue())

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


def write_parquet(file: HashedFile, table: pa.Table) -> None:
    """Write a table as `ParquetWriter` writes its rows."""
    buffer = BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=_ROWS)
    file.write(buffer.getvalue())


def write_matrix(file: HashedFile, matrix: np.ndarray[Any, Any]) -> None:
    """Write vectors as `MatrixWriter` writes those of pairs: (pairs, width of the model)."""
    header = {"descr": "<f2", "fortran_order": False, "shape": matrix.shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(matrix.astype("<f2").tobytes())


class MatrixWriter:
    """One embedding per pair as .npy: float16, shape (pairs, width of the model)."""

    def __init__(self, file: HashedFile, field: str) -> None:
        self._file, self._field = file, field
        self._shape = (0, 0)
        self._rows = file.scratch()  # the header, which comes first, has the number of rows

    def add(self, pair: Judged, row: Row) -> None:
        embedding: np.ndarray[Any, Any] = getattr(pair, self._field)
        with disk_errors(self._file.path):
            self._rows.write(embedding.astype("<f2").tobytes())
        self._shape = self._shape[0] + 1, embedding.size

    def close(self) -> None:
        header = {"descr": "<f2", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        with disk_errors(self._file.path):
            self._rows.seek(0)
            shutil.copyfileobj(self._rows, self._file, 1 << 20)
