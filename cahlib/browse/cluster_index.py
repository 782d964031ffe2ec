"""An index for searches in more embeddings than the memory holds, made by `cah browse --index`.

Embeddings are sorted by cluster (k-means by faiss), as one byte a number. A search reads the
clusters nearest to its vector, some 2 % of them, and misses what lies in another. The index is
plain arrays, mapped from their files: a dataset may come from strangers, and so may its index, and
faiss's own format is not made for that.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cahlib.browse.nearest import Vector, encode_block, fill_products
from cahlib.core.atomic import new_file, write_file
from cahlib.core.errors import RunError, disk_errors
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.maintain.similar import cluster_centres
from cahlib.dataset.vectors import StoredVectors

#: The folder of an index, in that of a dataset.
INDEX_FOLDER = str(RunDirectory().path / "search")

#: Bytes that are sorted at a time: the embeddings are read once for each such part.
_PART = 1 << 30
#: The share of all embeddings that a search reads, and the least number of them.
_SHARE, _LEAST = 0.02, 100_000


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """The data that an index was made of."""

    digest: str
    rows: int
    width: int


_decoder = msgspec.json.Decoder(_About)


class ClusterIndex:
    """An index, mapped from its files."""

    def __init__(self, folder: Path, rows: int, width: int) -> None:
        """Map the files; raise ValueError or OSError if they are damaged."""
        self._centres, self._rows, self._ends, self._codes, self._scales = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _FILES
        )
        clusters = len(self._ends)
        shapes = [(clusters, width), (rows,), (clusters,), (rows, width), (rows,)]
        found = [self._centres, self._rows, self._ends, self._codes, self._scales]
        if [each.shape for each in found] != shapes or [each.dtype for each in found] != _DTYPES:
            raise ValueError("its arrays do not fit together")
        if rows and not (self._ends[-1] == rows and (np.diff(self._ends, prepend=0) >= 0).all()):
            raise ValueError("its clusters do not fit together")

    def candidates(
        self, vector: Vector, count: int, mask: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Return the rows that are most likely the nearest, of those in the mask, in no order."""
        near = np.argsort(-(self._centres @ vector))
        sizes = np.diff(self._ends, prepend=0)
        wanted = max(_LEAST, int(_SHARE * len(self._rows)), 4 * count)
        chosen = near[: int(np.searchsorted(np.cumsum(sizes[near]), wanted)) + 1]
        rows, products = list[NDArray[np.int64]](), list[Vector]()
        for each in np.sort(chosen):
            end = int(self._ends[each])
            start = end - int(sizes[each])
            here = np.asarray(self._rows[start:end], np.int64)
            if len(here) == 0 or here.min() < 0 or here.max() >= len(self._rows):
                continue
            found = np.empty(end - start, np.float32)
            fill_products(self._codes[start:end], self._scales[start:end], vector, found)
            allowed = np.isfinite(found) if mask is None else np.isfinite(found) & mask[here]
            rows.append(here[allowed])
            products.append(found[allowed])
        if not rows:
            return np.empty(0, np.int64)
        every, cosines = np.concatenate(rows), np.concatenate(products)
        count = min(count, len(every))
        return every[np.argpartition(-cosines, count - 1)[:count]] if count else every[:0]


_FILES = ("centres", "rows", "ends", "codes", "scales")
_DTYPES = [np.dtype(each) for each in ("f4", "i8", "i8", "i1", "f4")]


def open_index(folder: Path, vectors: StoredVectors, digest: str) -> ClusterIndex | None:
    """Return the index of a dataset, or None; raise RunError if it is damaged or out of date."""
    there = folder / INDEX_FOLDER
    if not (there / "index.json").exists():
        return None
    hint = "make it again with `cah browse --index`."
    try:
        about = _decoder.decode((there / "index.json").read_bytes())
        if about.digest != digest:
            raise RunError(f"The index for searches is out of date; {hint}")
        return ClusterIndex(there, len(vectors), vectors.width)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise RunError(f"The index for searches is damaged ({error}); {hint}") from error


def embeddings_digest(files: Iterable[tuple[str, str]]) -> str:
    """Return what identifies embeddings: of each shard its id and the checksum of its file."""
    return hashlib.sha256("".join(f"{id} {sum}\n" for id, sum in files).encode()).hexdigest()


def make_index(
    folder: Path, vectors: StoredVectors, digest: str, report: Callable[[str], None]
) -> None:
    """Make the index of a dataset in its folder, whole or not at all.

    Raise ConfigError without faiss, or if the folder cannot be written, RunError for a full disk.
    """
    made = folder / f"{INDEX_FOLDER}.part"
    with disk_errors(made):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        try:
            report("Finding clusters …")
            count = max(1, min(int(len(vectors) ** 0.5), len(vectors) // 4))
            centres = cluster_centres(vectors, count)
            cluster = np.empty(len(vectors), np.int32)
            for start, block in vectors.blocks():
                cluster[start : start + len(block)] = (block @ centres.T).argmax(axis=1)
            rows = np.argsort(cluster, kind="stable")
            ends = np.cumsum(np.bincount(cluster, minlength=len(centres)))
            for name, array in (("centres", centres), ("rows", rows), ("ends", ends)):
                with new_file(made / f"{name}.npy") as file:
                    np.save(file, array)
            report("Sorting the embeddings …")
            _write_codes(made, vectors, rows)
            about = _About(digest=digest, rows=len(vectors), width=vectors.width)
            write_file(made / "index.json", msgspec.json.encode(about))
            shutil.rmtree(folder / INDEX_FOLDER, ignore_errors=True)
            made.rename(folder / INDEX_FOLDER)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _write_codes(made: Path, vectors: StoredVectors, rows: NDArray[np.int64]) -> None:
    """Write the embeddings in the order of these rows, part by part."""
    scales = np.empty(len(rows), np.float32)
    each = max(1, _PART // vectors.width)
    shape = {"descr": "|i1", "fortran_order": False, "shape": (len(rows), vectors.width)}
    with new_file(made / "codes.npy") as file:
        np.lib.format.write_array_header_1_0(file, shape)
        for start in range(0, len(rows), each):
            here = rows[start : start + each]
            part, order = np.empty((len(here), vectors.width), np.int8), np.argsort(here)
            for low, block in _taken(vectors, here[order]):
                places = order[low : low + len(block)]
                part[places], scales[start + places] = encode_block(block)
            file.write(part.data)
    with new_file(made / "scales.npy") as file:
        np.save(file, scales)


def _taken(vectors: StoredVectors, rows: NDArray[np.int64]) -> Iterator[tuple[int, Vector]]:
    """Yield the embeddings of sorted rows: where in the rows a block begins, and the block."""
    for low in range(0, len(rows), 4096):
        yield low, vectors.take(rows[low : low + 4096])
