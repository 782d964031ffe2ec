"""Writes the files of one shard: WebDataset tar, parquet table, embedding matrix.

Every file is written once, front to back, through a `Sink` that takes its checksum on the way and
keeps it under a temporary name until it is published. The same pairs give the same bytes. It does
not know what a dataset consists of, nor when a shard is complete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.curate.rows import Row, as_json
from cahlib.errors import ConfigError, RunError
from cahlib.records import Judged

#: What a temporary file's name ends with; see `part`.
PART = ".part"

#: Rows that are put into parquet together: some MiB of memory, and large enough to compress well.
_ROWS = 1000

#: Errors of a disk that mean a wrong choice of folder, not a disk in trouble.
_CHOICE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a finished file must look like."""

    size: int  #: bytes
    sha256: str  #: hex


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn a disk's errors into ConfigError (a wrong folder) or RunError (a disk in trouble)."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in _CHOICE:
            raise ConfigError(
                f"output: {path} cannot be written ({cause}); choose another folder."
            ) from error
        raise RunError(
            f"{path} cannot be written ({cause}); make room, then run the same command again."
        ) from error


def part(path: Path) -> Path:
    """Where a file is while it is made: hidden, for pandas reads all else in a folder."""
    return path.with_name(f".{path.name}{PART}")


class Sink:
    """A file in the making: hashed while it is written, published under its name at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = part(path)
        self._hash, self._size = hashlib.sha256(), 0
        with disk(path), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = opened.enter_context(open(self._at, "wb"))
            self._opened = opened.pop_all()

    def scratch(self) -> BinaryIO:
        """A file without a name, closed together with this one; a crash leaves nothing of it."""
        with disk(self.path):
            file = tempfile.TemporaryFile(dir=self.path.parent)
        return cast(BinaryIO, self._opened.enter_context(file))

    def write(self, data: bytes) -> int:
        """Append bytes; raises ConfigError or RunError."""
        with disk(self.path):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def close(self) -> Stored:
        """Bring everything onto the disk."""
        with disk(self.path), self._opened:
            self._file.flush()
            os.fsync(self._file.fileno())
        return Stored(size=self._size, sha256=self._hash.hexdigest())

    def publish(self) -> None:
        """Give the closed file its name."""
        with disk(self.path):
            self._at = self._at.replace(self.path)

    def discard(self) -> None:
        """Leave nothing of the file, published or not."""
        # What a full disk did not take cannot be flushed now either: that is not news.
        with suppress(OSError):
            self._opened.close()
        self._at.unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one."""
    with ExitStack() as undo:
        sink = Sink(path)
        undo.callback(sink.discard)
        sink.write(data)
        sink.close()
        sink.publish()
        undo.pop_all()


class Writer(Protocol):
    """One form of a shard's pairs."""

    def add(self, pair: Judged, row: Row) -> None:
        """Append a pair."""

    def close(self) -> None:
        """Write what is still held back into the sink."""


class Tar:
    """A WebDataset tar: ``<uid>.<format>``, ``<uid>.json`` and ``<uid>.txt`` of pair after pair."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def add(self, pair: Judged, row: Row) -> None:
        image = pair.image
        self._member(f"{row['uid']}.{image.format}", image.data)
        self._member(f"{row['uid']}.json", as_json(row))
        self._member(f"{row['uid']}.txt", row["TEXT"].encode())

    def close(self) -> None:
        self._sink.write(bytes(2 * tarfile.BLOCKSIZE))
        self._sink.write(bytes(-self._sink.tell() % tarfile.RECORDSIZE))

    def _member(self, name: str, data: bytes) -> None:
        # No times and no owners: the same pairs give the same file.
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o444
        self._sink.write(info.tobuf(tarfile.USTAR_FORMAT))
        self._sink.write(data)
        self._sink.write(bytes(-len(data) % tarfile.BLOCKSIZE))


class Table:
    """The metadata as parquet; compressed, it waits in memory: some 200 bytes a pair."""

    def __init__(self, sink: Sink, schema: pa.Schema) -> None:
        self._sink, self._schema = sink, schema
        self._rows: list[Row] = []
        # pyarrow's writer writes a footer even when it is thrown away, so it never sees the disk.
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
        self._sink.write(self._buffer.getvalue())

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


class Matrix:
    """One embedding of each pair as .npy: float16, shape (pairs, width of the model)."""

    def __init__(self, sink: Sink, field: str) -> None:
        self._sink, self._field = sink, field
        self._shape = (0, 0)
        self._rows = sink.scratch()  # the header, which comes first, names the number of rows

    def add(self, pair: Judged, row: Row) -> None:
        embedding: np.ndarray[Any, Any] = getattr(pair, self._field)
        with disk(self._sink.path):
            self._rows.write(embedding.astype("<f2").tobytes())
        self._shape = self._shape[0] + 1, embedding.size

    def close(self) -> None:
        header = {"descr": "<f2", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._sink, header)
        with disk(self._sink.path):
            self._rows.seek(0)
            shutil.copyfileobj(self._rows, self._sink, 1 << 20)
