"""Add columns of scores, and vectors, to the committed shards of a finished dataset.

A shard gets them all at once or not at all, as a removal of pairs does
(`cahlib.dataset.maintain.rewrite`). Nothing here knows what scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cahlib.core.errors import ConfigError, RunError
from cahlib.dataset.layout import part_path
from cahlib.dataset.maintain.verify_shard import check_file
from cahlib.dataset.manifest import AddedScores, ShardManifest, read_manifests
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.read_pairs import extras_of
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.write.columns import TAKEN
from cahlib.dataset.write.formats import write_matrix, write_parquet
from cahlib.dataset.write.shard_writer import ShardWriter, recover_interrupted


def shards_here(folder: Path) -> list[ShardManifest]:
    """Return the shards of a dataset that have pairs, after completing an interrupted change.

    The caller holds the folder's lock. Raise ConfigError if files are elsewhere, and RunError if a
    manifest is damaged.
    """
    recover_interrupted(folder)
    every = list(read_manifests(folder))
    if away := next((manifest.place for manifest in every if manifest.place), None):
        raise ConfigError(f"{folder}: the files are at {away}; download them first.")
    return [manifest for manifest in every if manifest.rows]


def require_whole(folder: Path, manifest: ShardManifest, *paths: str) -> None:
    """Raise RunError if one of these files of a shard is missing or changed."""
    for path in paths:
        stored = manifest.files.get(path)
        found = (
            check_file(files_at(folder), path, stored=stored, reader=lambda *_: iter(()))
            if stored
            else iter([f"{path} is missing."])
        )
        if fault := next(found, ""):
            raise RunError(f"shard {manifest.shard.id} is damaged: {fault}")


def add_scores(
    folder: Path,
    manifest: ShardManifest,
    added: AddedScores,
    columns: Mapping[str, pa.Array],
    vectors: Mapping[str, np.ndarray[Any, Any]],
) -> ShardManifest:
    """Add columns to a shard's metadata, and matrices by their paths, in place of earlier ones.

    What was added with one of these columns is replaced as a whole. The caller holds the folder's
    lock, and knows that the metadata are whole. Raise ConfigError or RunError if the disk fails.
    """
    path = part_path("metadata", manifest.shard.id)
    table = read_metadata(folder / path)
    old = [each for each in manifest.added if _is_replaced(each, added)]
    gone = {name for each in old for name in each.columns}
    table = table.drop_columns([name for name in table.column_names if name in gone])
    for name, values in columns.items():
        table = table.append_column(name, values)
    replaced = {path, *vectors}
    kept = {name: stored for name, stored in manifest.files.items() if name not in replaced}
    others = tuple(each for each in manifest.added if each not in old)
    with ShardWriter(folder) as writer:
        write_parquet(writer.open(path), table)
        for name, matrix in vectors.items():
            write_matrix(writer.open(name), matrix)
        return writer.commit(replace(manifest, files=kept, added=(*others, added)))


def require_free_columns(shards: Iterable[ShardManifest], columns: Sequence[str]) -> None:
    """Raise ConfigError if a shard has columns of these names that were not added to it."""
    for each in shards:
        extras = (name for _, name in extras_of(each))
        if taken := {*TAKEN, *each.scores, *extras}.intersection(columns):
            name = min(taken)
            raise ConfigError(f"{name} is a column of the dataset's own; choose another name.")


def _is_replaced(before: AddedScores, added: AddedScores) -> bool:
    same = (before.model, before.columns) == (added.model, added.columns)
    return same or bool({*before.columns} & {*added.columns})
