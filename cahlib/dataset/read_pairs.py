"""Read the pairs of a committed shard from its files, as they were scored."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from cahlib.core.records import Judged
from cahlib.core.table_rows import ExtraColumn, parse_rows_url
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import ShardManifest, tar_path
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.write.columns import (
    Row,
    columns_of_layout,
    layout_by_columns,
    restore_pair,
)
from cahlib.dataset.write.tfrecord import read_tfrecords

#: What the readers of a shard raise if one of its files is damaged or missing.
DAMAGE = (tarfile.TarError, ValueError, KeyError, StopIteration, OSError)


class ShardTable(NamedTuple):
    """The metadata of a shard."""

    rows: list[Row]  #: with None for columns that this layout has and the table lacks
    schema: pa.Schema
    layout: int


def read_table(folder: Path, manifest: ShardManifest) -> ShardTable:
    """Return the metadata of a shard; raise one of `DAMAGE` if it cannot be read."""
    path = folder / part_path("metadata", manifest.shard.id)
    table = read_metadata(path) if manifest.rows else pa.table({})
    layout = layout_by_columns(table.column_names)
    lacking = dict.fromkeys(columns_of_layout(layout))
    return ShardTable([{**lacking, **row} for row in table.to_pylist()], table.schema, layout)


def read_pairs(folder: Path, manifest: ShardManifest, rows: Iterable[Row]) -> Iterator[Judged]:
    """Yield the pairs of a shard with these rows; raise one of `DAMAGE` if they cannot be read.

    A pair has no picture if no file of the shard has it.
    """
    images, texts = (_vectors(folder, manifest, form) for form in ("img_emb", "text_emb"))
    extras = extras_of(manifest)
    for row, data, image, text in zip(rows, _data(folder, manifest), images, texts, strict=False):
        yield restore_pair(
            row, data=data, image_embedding=image, text_embedding=text, extras=extras
        )


def extras_of(manifest: ShardManifest) -> tuple[ExtraColumn, ...]:
    """Return the columns that a shard's rows carry along from a table."""
    rows = parse_rows_url(manifest.shard.url)
    return rows.extras if rows else ()


def pictures_path(manifest: ShardManifest) -> str | None:
    """Return the file that has the pictures of a shard, or None if none has."""
    records = part_path("tfrecords", manifest.shard.id)
    return tar_path(manifest) or (records if records in manifest.files else None)


def _vectors(folder: Path, manifest: ShardManifest, form: str) -> Iterable[Any]:
    path = folder / part_path(form, manifest.shard.id)
    return np.load(path, mmap_mode="r") if path.exists() else repeat(np.empty(0, np.float16))


def _data(folder: Path, manifest: ShardManifest) -> Iterator[bytes]:
    """Yield the images of a shard, from whichever of its files has them."""
    path = pictures_path(manifest)
    if path is None:
        yield from repeat(b"")
    elif path.endswith(".tar"):
        with tarfile.open(folder / path) as file:
            for member in file:
                if not member.name.endswith((".json", ".txt")):
                    yield cast(Any, file.extractfile(member)).read()
    else:
        with (folder / path).open("rb") as stream:
            yield from (cast(bytes, each["image"]) for each in read_tfrecords(stream))
