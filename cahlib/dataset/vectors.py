"""The stored embeddings of a dataset: one matrix over all shards, mapped from their files.

    vectors = open_vectors("my-dataset")
    for start, block in vectors.blocks():  # float32, each row of length 1
        ...
    shard, position = vectors.locate(row)

A row is a pair: ``position`` is its row in the metadata of its shard, too. Nothing is read before
it is asked for. Files on this machine are memory-mapped as they are (float16), those at a URL are
read one shard at a time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError, RunError
from cahlib.dataset.layout import further_model, vectors_path
from cahlib.dataset.manifest import ShardManifest, no_dataset_error, read_manifests
from cahlib.dataset.storage.files import files_at
from cahlib.model.model_source import find_source, named_judge
from cahlib.model.score_names import column_name

#: Rows of embeddings, float32.
Matrix: TypeAlias = NDArray[np.float32]

#: Shards that are open at a time: a mapping holds a file descriptor (limit: often 1,024), and what
#: comes from a URL is held in memory.
_MAPPED, _READ = 512, 4


class VectorFile(NamedTuple):
    """The embeddings of one shard."""

    shard: str  #: its id
    rows: int
    place: str | Path  #: the folder or URL of the dataset's files
    path: str  #: below that


class StoredVectors:
    """The embeddings of all shards, as one matrix; shards without pairs are left out."""

    def __init__(self, files: list[VectorFile], model: str) -> None:
        """Take at least one file, in the order of the shards."""
        self.files, self.model = tuple(files), model
        #: the first row of each shard, and the number of all rows
        self.starts = np.cumsum([0, *(each.rows for each in files)])
        local = all(files_at(each.place).folder for each in files)
        self._open = lru_cache(_MAPPED if local else _READ)(_open_matrix)
        self.width = int(self.shard_matrix(0).shape[1])
        self._numbers = {each.shard: number for number, each in enumerate(files)}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, row: int) -> tuple[str, int]:
        """Return the shard of a row, and its position there."""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        return self.files[number].shard, int(row - self.starts[number])

    def row(self, shard: str, position: int) -> int:
        """Return the row of a pair; raise KeyError for a shard without pairs."""
        return int(self.starts[self._numbers[shard]]) + position

    def shard_matrix(self, number: int) -> NDArray[np.float16]:
        """Return the embeddings of a shard as stored, by its number in `files`.

        Raise RunError if its file is damaged, ConfigError if its width is not that of the others.
        """
        file = self.files[number]
        matrix = self._open(file)
        if number and matrix.shape[1] != self.width:
            raise ConfigError(
                f"{file.path} has embeddings of {matrix.shape[1]} numbers, {self.files[0].path} of "
                f"{self.width}: they are of different models, and cannot be compared."
            )
        return matrix

    def take(self, rows: NDArray[np.int64]) -> Matrix:
        """Return the embeddings of some rows in the given order, each of length 1."""
        found = np.empty((len(rows), self.width), np.float32)
        numbers = np.searchsorted(self.starts, rows, "right") - 1
        order = np.argsort(numbers, kind="stable")
        edges = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=-1))
        for low, high in zip(edges, edges[1:], strict=False):  # once per shard
            at = order[low:high]
            number = int(numbers[at[0]])
            found[at] = self.shard_matrix(number)[rows[at] - self.starts[number]]
        return unit_rows(found)

    def blocks(self, rows: int = 8192) -> Iterator[tuple[int, Matrix]]:
        """Yield all embeddings: the first row of a block, and at most so many, of length 1."""
        for number, start in enumerate(self.starts[:-1].tolist()):
            matrix = self.shard_matrix(number)
            for low in range(0, len(matrix), rows):
                yield start + low, unit_rows(matrix[low : low + rows].astype(np.float32))


def unit_rows(matrix: Matrix) -> Matrix:
    """Scale rows to length 1, in place, and return them; what has no direction becomes 0."""
    lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix))[:, None]
    sound = np.isfinite(lengths) & (lengths > 0)
    np.divide(matrix, lengths, out=matrix, where=sound)
    matrix[~sound[:, 0]] = 0
    return matrix


def open_vectors(place: str | Path, form: str = "img_emb", *, model: str = "") -> StoredVectors:
    """Return the embeddings of a dataset in a folder or at a URL: of images, or of texts.

    They are the dataset's own, or those by the further model of a name that `stored_model` knows.
    Raise ConfigError if it has none, or its own are those of several models.
    """
    manifests = list(read_manifests(place))
    if not manifests:
        raise no_dataset_error(place)
    shards = [each for each in manifests if each.rows]
    if not shards:
        raise ConfigError(f"{place} holds no pairs yet.")
    return StoredVectors(*vector_files(place, shards, stored_model(shards, model), form))


def stored_model(shards: Sequence[ShardManifest], typed: str = "") -> str:
    """Return the name of the model whose vectors some shards have: their own, or one that is named.

    It is named as the dataset has it, or as `cahlib.model.model_source.named_judge` reads it. Raise
    ConfigError if there are no vectors by it, or the shards' own are by several.
    """
    every = {name for each in shards for name in vector_models(each)}
    if typed:
        name = typed if typed in every else find_source(named_judge("model", typed)).name
        if name not in every:
            there = (
                f"there are those by {' and '.join(sorted(every))}" if every else "there are none"
            )
            raise ConfigError(
                f"model: the dataset has no vectors by {name}; {there}. `cah score` with that "
                "model and --embeddings makes them."
            )
        return name
    own = sorted({each.model for each in shards})
    if len(own) > 1:
        shared = every.intersection(*map(vector_models, shards))
        choice = f" Choose {' or '.join(sorted(shared))} with --model." if shared else ""
        raise ConfigError(
            f"The shards have embeddings of {' and '.join(own)}, which cannot be compared.{choice}"
        )
    return own[0]


def vector_models(shard: ShardManifest) -> set[str]:
    """Return the names of the models by which a shard has vectors of its images."""
    named = {column_name(each.model): each.model for each in shard.added}
    found = {
        named[model]
        for path in shard.files
        if path.startswith("img_emb") and (model := further_model(path)) in named
    }
    return found | (
        {shard.model} if vectors_path("img_emb", shard.shard.id) in shard.files else set()
    )


def path_by_model(shard: ShardManifest, model: str, form: str = "img_emb") -> str:
    """Return where the vectors of a shard by a model are, or shall be."""
    own = vectors_path(form, shard.shard.id)
    if shard.model == model and own in shard.files:
        return own
    return vectors_path(form, shard.shard.id, column_name(model))


def vector_files(
    place: str | Path, shards: Sequence[ShardManifest], model: str, form: str = "img_emb"
) -> tuple[list[VectorFile], str]:
    """Return the files of the vectors by a model, and its name; raise ConfigError if one lacks."""
    files = []
    for each in shards:
        path = path_by_model(each, model, form)
        if path not in each.files:
            raise ConfigError(
                f"{place}: shard {each.shard.id} has no embeddings"
                + (
                    "; only a run with --forms embeddings stores them."
                    if each.model == model
                    else f" by {model}; `cah score` with that model and --embeddings makes them."
                )
            )
        files.append(VectorFile(each.shard.id, each.rows, each.place or place, path))
    return files, model


def _open_matrix(file: VectorFile) -> NDArray[np.float16]:
    there = files_at(file.place)
    matrix: NDArray[np.float16]
    try:
        if there.folder:
            matrix = np.load(there.folder / file.path, mmap_mode="r", allow_pickle=False)
        else:
            matrix = np.load(io.BytesIO(there.read(file.path)), allow_pickle=False)
        if matrix.dtype != np.float16 or matrix.ndim != 2 or len(matrix) != file.rows:
            raise ValueError(f"{matrix.dtype} of shape {matrix.shape}, for {file.rows} pairs")
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{file.path} cannot be read ({error}); see `cah verify`.") from error
    return matrix
