"""Find the pairs whose stored embeddings are nearest to a vector, by cosine.

Embeddings are stored as float16, which no BLAS multiplies: to convert 1,000,000 of 512 numbers for
each search takes 1.4 s. So a copy of one byte a number is made once, 512 MB for these, whose
products take 0.3 CPU s, on all cores; the best of them are then compared as they are stored. Where
no memory is left for the copy, each search converts, unless there is an index
(`cahlib.browse.cluster_index`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeAlias

import numpy as np
import psutil
from numpy.typing import NDArray

from cahlib.core.errors import CahError
from cahlib.dataset.vectors import StoredVectors, unit_rows

#: One vector, or the cosines of all rows.
Vector: TypeAlias = NDArray[np.float32]

#: Rows that are copied and multiplied at a time: their floats stay in a core's cache.
_ROWS = 256
#: The cores that a search uses at most, and rows that are worth another one.
_CORES, _PART = 8, 50_000
#: The share of free memory that the copy may take.
_SHARE = 0.5
#: Rows compared as they are stored, for each that is returned. The copy errs by 0.0005 (standard
#: deviation, 512 numbers), so that a row among the best is not missed.
_AGAIN = 2
#: Rows that are compared as they are stored where a filter leaves no more, if there is an index.
_FEW = 20_000


class CandidateIndex(Protocol):
    """A source of the rows that may be the nearest."""

    def candidates(
        self, vector: Vector, count: int, mask: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return so many rows, of those in the mask."""


class NearestPairs:
    """The embeddings of a dataset, compared with one vector at a time. Thread-safe.

    With ``index`` a search compares only the rows that it names.
    """

    def __init__(self, vectors: StoredVectors, index: CandidateIndex | None = None) -> None:
        self.vectors = vectors
        self.unreadable = set[str]()  #: shards whose embeddings cannot be read: never found
        self._index = index
        self._codes: NDArray[np.int8] | None = None
        self._scales: Vector | None = None
        self._lock = threading.Lock()
        self._made = index is not None

    def prepare(self) -> None:
        """Make the copy, unless it is made, needless, or there is no memory for it."""
        with self._lock:
            if self._made:
                return
            rows, width = len(self.vectors), self.vectors.width
            if rows * width <= psutil.virtual_memory().available * _SHARE:
                codes, scales = np.zeros((rows, width), np.int8), np.zeros(rows, np.float32)
                for start, block in self._blocks():
                    end = start + len(block)
                    codes[start:end], scales[start:end] = encode_block(block)
                self._codes, self._scales = codes, scales
            self._made = True

    @property
    def is_local(self) -> bool:
        """Return whether the embeddings are files of this machine, which cost nothing to read."""
        return all("://" not in str(each.place) for each in self.vectors.files)

    def vector(self, row: int) -> Vector:
        """Return the embedding of a row; raise RunError if its shard cannot be read."""
        return np.asarray(self.vectors.take(np.array([row], np.int64))[0])

    def nearest(
        self, vector: Vector, count: int, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], Vector]:
        """Return the nearest rows, of those in the mask, and their cosines, the largest first."""
        self.prepare()
        vector = np.ascontiguousarray(vector, np.float32)
        if self._index and (mask is None or mask.sum() > _FEW):
            rows = self._index.candidates(vector, _AGAIN * count, mask)
        elif self._index and mask is not None:
            rows = np.flatnonzero(mask)
        else:
            rows = self._likely(vector, _AGAIN * count, mask)
        rows = np.sort(rows)
        exact = self.vectors.take(rows) @ vector
        best = np.argsort(-exact, kind="stable")[:count]
        return rows[best], exact[best]

    def _likely(
        self, vector: Vector, count: int, mask: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the rows with the largest cosines, by the copy, in no order."""
        cosines = self._cosines(vector)
        if mask is not None:
            cosines[~mask] = -np.inf
        count = min(count, len(cosines))
        rows = np.argpartition(cosines, len(cosines) - count)[len(cosines) - count :]
        return rows[np.isfinite(cosines[rows])]

    def _cosines(self, vector: Vector) -> Vector:
        found = np.full(len(self.vectors), -np.inf, np.float32)
        if self._codes is None or self._scales is None:
            for start, block in self._blocks():
                found[start : start + len(block)] = block @ vector
        else:
            fill_products(self._codes, self._scales, vector, found)
        return found

    def _blocks(self) -> Iterator[tuple[int, Vector]]:
        """Yield the embeddings that can be read: the first row of a block, and its rows."""
        for number, file in enumerate(self.vectors.files):
            start = int(self.vectors.starts[number])
            try:
                matrix = self.vectors.shard_matrix(number)
            except CahError:
                self.unreadable.add(file.shard)
                continue
            for low in range(0, len(matrix), _ROWS):
                yield start + low, unit_rows(matrix[low : low + _ROWS].astype(np.float32))


def encode_block(block: Vector) -> tuple[NDArray[np.int8], Vector]:
    """Return embeddings as one byte a number, with a scale for each; the block is overwritten."""
    scales = np.abs(block).max(axis=1) / 127
    block /= np.maximum(scales, np.finfo(np.float32).tiny)[:, None]
    return np.rint(block, out=block).astype(np.int8), scales


def fill_products(codes: NDArray[np.int8], scales: Vector, vector: Vector, found: Vector) -> None:
    """Write the cosines of encoded embeddings with a vector; -inf for those without direction."""

    def fill(first: int, last: int) -> None:
        floats = np.empty((_ROWS, len(vector)), np.float32)
        for start in range(first, last, _ROWS):
            end = min(start + _ROWS, last)
            block = floats[: end - start]
            block[...] = codes[start:end]
            np.dot(block, vector, out=found[start:end])
        part = slice(first, last)
        found[part] *= scales[part]
        found[part][scales[part] == 0] = -np.inf  # or unreadable

    parts = min(os.cpu_count() or 1, _CORES, 1 + len(found) // _PART)
    edges = np.linspace(0, len(found), parts + 1).astype(int).tolist()
    if parts == 1:
        fill(*edges)
        return
    with ThreadPoolExecutor(parts) as pool:  # numpy lets others work meanwhile
        list(pool.map(fill, edges[:-1], edges[1:]))
