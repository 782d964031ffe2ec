"""Read the table of metadata of a committed shard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq


def read_metadata(source: Path | BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a shard's metadata, one row per pair; of ``columns``, those that the file has.

    Raise OSError or ValueError if the file is damaged. Arrow's own threads stay out of it: they may
    release a Python buffer when the interpreter has already ended, which aborts the process (seen
    in 2 of 40 `cah verify` that could not print).
    """
    file = pq.ParquetFile(source, pre_buffer=False)
    if columns is None:
        return file.read(use_threads=False)
    names = [name for name in columns if name in file.schema_arrow.names]
    return file.read(names, use_threads=False).select(names)


def read_metadata_schema(source: Path | BinaryIO) -> pa.Schema:
    """Return the columns of a shard's metadata; raise as `read_metadata` does."""
    return pq.ParquetFile(source, pre_buffer=False).schema_arrow
