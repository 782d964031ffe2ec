"""Add columns of scores, and vectors, to the committed shards of a finished dataset.

A shard gets them all at once or not at all, as a removal of pairs does
(`cahlib.dataset.maintain.rewrite`). Nothing here knows what scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.wording import plural
from cahlib.dataset.layout import part_path
from cahlib.dataset.maintain.purge import change_dataset
from cahlib.dataset.maintain.verify_shard import check_file
from cahlib.dataset.manifest import AddedScores, ShardManifest, read_manifests
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.read_pairs import DAMAGE, extras_of
from cahlib.dataset.storage.files import UnreadableFile, files_at
from cahlib.dataset.write.columns import TAKEN
from cahlib.dataset.write.formats import write_matrix, write_parquet
from cahlib.dataset.write.shard_writer import ShardWriter, recover_interrupted

_T = TypeVar("_T")
_R = TypeVar("_R")

_NONE: Mapping[str, np.ndarray[Any, Any]] = MappingProxyType({})


class DamagedShard(RunError):
    """A shard cannot be read, while others can."""


@contextmanager
def changing_scores(folder: Path) -> Iterator[list[DamagedShard]]:
    """Lock the dataset in a folder, and collect its damaged shards, which are reported at the end.

    Raise RunError then if there are any; what became of the others is kept by then.
    """
    damaged: list[DamagedShard] = []
    with change_dataset(folder):
        yield damaged
    if damaged:
        raise RunError(
            f"{plural(len(damaged), 'shard')} could not be scored: {damaged[0]} The others have "
            "their scores; see `cah repair`."
        )


@contextmanager
def damage_of(manifest: ShardManifest) -> Iterator[None]:
    """Turn the errors of reading a shard's files into DamagedShard."""
    try:
        yield
    except UnreadableFile as error:
        raise DamagedShard(str(error)) from error
    except DAMAGE as error:
        raise DamagedShard(f"shard {manifest.shard.id} cannot be read ({error}).") from error


def unless_damaged(
    items: Iterable[_T], score: Callable[[_T], _R], damaged: list[DamagedShard]
) -> Iterator[_R]:
    """Yield the result of each item; add the errors of damaged shards to a list."""
    for each in items:
        try:
            result = score(each)
        except DamagedShard as error:
            damaged.append(error)
        else:
            yield result


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
    """Raise DamagedShard if one of these files of a shard is missing or changed."""
    for path in paths:
        stored = manifest.files.get(path)
        found = (
            check_file(files_at(folder), path, stored=stored, reader=lambda *_: iter(()))
            if stored
            else iter([f"{path} is missing."])
        )
        if fault := next(found, ""):
            raise DamagedShard(f"shard {manifest.shard.id} is damaged: {fault}")


def add_scores(
    folder: Path,
    manifest: ShardManifest,
    added: Sequence[AddedScores],
    columns: Mapping[str, pa.Array],
    vectors: Mapping[str, np.ndarray[Any, Any]] = _NONE,
) -> ShardManifest:
    """Add columns to a shard's metadata, and matrices by their paths, in place of earlier ones.

    What was added under the same first column is replaced as a whole. The caller holds the folder's
    lock, and knows that the metadata are whole. Raise ConfigError or RunError if the disk fails.
    """
    path = part_path("metadata", manifest.shard.id)
    table = read_metadata(folder / path)
    ours = {_key(each) for each in added}
    old = [each for each in manifest.added if _key(each) in ours]
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
        return writer.commit(replace(manifest, files=kept, added=(*others, *added)))


def require_free_columns(shards: Iterable[ShardManifest], added: Iterable[AddedScores]) -> None:
    """Raise ConfigError if a shard has columns of these names that other scores or itself gave it.

    Letters' case does not count, as in SQL.
    """
    every = [*added]
    wanted = {name.lower(): name for each in every for name in each.columns}
    ours = {_key(each) for each in every}
    for shard in shards:
        others = (name for each in shard.added if _key(each) not in ours for name in each.columns)
        extras = (name for _, name in extras_of(shard))
        for name in (*TAKEN, *shard.scores, *extras, *others):
            if name.lower() in wanted:
                raise ConfigError(
                    f"{wanted[name.lower()]} is already a column of the dataset; choose another "
                    "name."
                )


def _key(added: AddedScores) -> tuple[str, ...]:
    """Return what scores have in common with those that replace them."""
    return added.columns[:1] or ("", added.model)
