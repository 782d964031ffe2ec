"""Read the table of metadata of a committed shard."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
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


def read_metadata_rows(
    source: Path | BinaryIO, rows: Sequence[int], count: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return some rows of a shard's metadata, in their order; its other row groups are not read.

    A page of 48 pairs of as many shards takes a third of the time. Raise as `read_metadata` does,
    and ValueError if the file has not ``count`` rows.
    """
    file = pq.ParquetFile(source, pre_buffer=False)
    if file.metadata.num_rows != count:
        raise ValueError(f"it has {file.metadata.num_rows} rows instead of {count}")
    names = file.schema_arrow.names
    if columns is not None:
        names = [name for name in columns if name in names]
    sizes = [file.metadata.row_group(each).num_rows for each in range(file.num_row_groups)]
    ends = list(accumulate(sizes))
    groups = sorted({bisect_right(ends, row) for row in rows})
    starts = dict(zip(groups, accumulate([0, *(sizes[each] for each in groups)]), strict=False))
    places = [(bisect_right(ends, row), row) for row in rows]
    at = [starts[group] + row - (ends[group] - sizes[group]) for group, row in places]
    return file.read_row_groups(groups, names, use_threads=False).select(names).take(at)


def read_metadata_schema(source: Path | BinaryIO) -> pa.Schema:
    """Return the columns of a shard's metadata; raise as `read_metadata` does."""
    return pq.ParquetFile(source, pre_buffer=False).schema_arrow
