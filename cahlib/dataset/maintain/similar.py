"""Find embeddings that are nearly the same: of each group the best stays.

After SemDeDup (A. Abbas et al., 2023, arXiv:2303.09540): k-means divides the embeddings, and only
those of the same cluster are compared. Here each is compared with those of the clusters around it,
not of its own alone, and only with those that stay, so every image that goes has one that stays
within the threshold. Up to `_EXACT` embeddings are compared without clusters.

Measured on 100,000 vectors of which a fifth are near another (cosine 0.94 to 1): of all that brute
force finds at 0.95, the eight nearest clusters contain 99.9 %, the nearest alone 96.4 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cahlib.core.errors import missing_library_error
from cahlib.dataset.vectors import Matrix, StoredVectors

#: Numbers of rows.
Rows = NDArray[np.int64]

#: Embeddings that are compared without clusters: with 50,000 that takes 10 s.
_EXACT = 50_000
#: Clusters with which each embedding is compared, rounds of k-means, and its sample per cluster.
_AROUND, _ROUNDS, _SAMPLE = 8, 10, 64
#: Embeddings that are compared at a time: with those before them, among themselves, and at most
#: with so many of a cluster.
_BLOCK, _PART, _COLUMNS = 8192, 512, 2048
#: What half precision may take from the cosine of equal embeddings.
ROUNDING = 1e-4


class Similar(NamedTuple):
    """Embeddings that are nearly the same as another one, which stays."""

    rows: Rows  #: of those that go
    kept: Rows  #: for each of them, one that stays
    cosines: NDArray[np.float32]  #: of the two


def find_similar(
    vectors: StoredVectors,
    order: Rows,
    threshold: float,
    *,
    exact: int = _EXACT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Similar:
    """Find embeddings with a cosine of at least ``threshold`` to one that comes before them.

    ``order`` has all rows, best first: each that stays removes those that are near. The embeddings
    are held in memory as they are stored, 1 KiB per image with 512 numbers. ``progress`` is called
    with the number of those compared, and of all. Raise ConfigError if faiss is missing and needed.
    """
    near = _nearest_clusters(vectors, exact)
    stay = _Staying(near[:, 0], vectors.width)
    kept = np.full(len(vectors), -1)
    cosines = np.zeros(len(vectors), np.float32)
    for low in range(0, len(order), _BLOCK):
        rows = order[low : low + _BLOCK]
        block = vectors.take(rows)
        found, cosine = stay.nearest(block, near[rows])
        new = np.flatnonzero(cosine < threshold - ROUNDING)
        among, own = _leaders(block[new], threshold - ROUNDING)
        found[new] = np.where(among < 0, -1, rows[new[among]])
        cosine[new] = own
        kept[rows], cosines[rows] = found, cosine
        first = new[among < 0]
        stay.add(rows[first], block[first], near[rows[first], 0])
        progress(low + len(rows), len(order))
    gone = np.flatnonzero(kept >= 0)
    return Similar(gone, kept[gone], cosines[gone])


class _Staying:
    """The embeddings that stay, by cluster."""

    def __init__(self, homes: NDArray[np.int32], width: int) -> None:
        """``homes``: the cluster of every embedding, also of those that will go."""
        self._starts = np.cumsum([0, *np.bincount(homes)])
        self._filled = self._starts.copy()
        # memory is taken as it is filled
        self._vectors = np.empty((len(homes), width), np.float16)
        self._rows = np.empty(len(homes), np.int64)

    def add(self, rows: Rows, vectors: Matrix, homes: NDArray[np.int32]) -> None:
        order = np.argsort(homes, kind="stable")
        clusters, firsts, counts = np.unique(homes[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(firsts, counts)
        at = self._filled[homes[order]] + rank
        self._vectors[at], self._rows[at] = vectors[order], rows[order]
        self._filled[clusters] += counts

    def nearest(self, block: Matrix, near: NDArray[np.int32]) -> tuple[Rows, NDArray[np.float32]]:
        """Return the row that is nearest to each, in these clusters, and the cosine of the two."""
        found, cosine = np.full(len(block), -1), np.full(len(block), -1, np.float32)
        flat = near.ravel()
        order = np.argsort(flat, kind="stable")
        edges = np.flatnonzero(np.diff(flat[order], prepend=-1, append=-1))
        for low, high in zip(edges, edges[1:], strict=False):  # once per cluster
            some = order[low:high] // near.shape[1]
            cluster = flat[order[low]]
            for at in range(self._starts[cluster], self._filled[cluster], _COLUMNS):
                end = min(at + _COLUMNS, self._filled[cluster])
                products = block[some] @ self._vectors[at:end].astype(np.float32).T
                best = products.argmax(axis=1)
                best_cosine = products[np.arange(len(some)), best]
                better = best_cosine > cosine[some]
                found[some[better]] = self._rows[at + best[better]]
                cosine[some[better]] = best_cosine[better]
        return found, cosine


def _leaders(block: Matrix, threshold: float) -> tuple[Rows, NDArray[np.float32]]:
    """Return which earlier one that stays each of a block is near to, or -1, and the cosine."""
    found, cosine = np.full(len(block), -1), np.zeros(len(block), np.float32)
    stay, count = np.empty_like(block), 0
    of = np.empty(len(block), np.int64)
    for low in range(0, len(block), _PART):
        some = np.arange(low, min(low + _PART, len(block)))
        if count:
            products = block[some] @ stay[:count].T
            best = products.argmax(axis=1)
            cosine[some] = products[np.arange(len(some)), best]
            hit = cosine[some] >= threshold
            found[some[hit]] = of[best[hit]]
            some = some[~hit]
        products = np.tril(block[some] @ block[some].T, -1)
        gone = np.zeros(len(some), bool)
        for place in np.flatnonzero((products >= threshold).any(axis=1)):
            products[place, :place][gone[:place]] = 0
            best_one = products[place].argmax()
            if products[place, best_one] >= threshold:
                gone[place] = True
                found[some[place]] = some[best_one]
                cosine[some[place]] = products[place, best_one]
        some = some[~gone]
        stay[count : count + len(some)], of[count : count + len(some)] = block[some], some
        count += len(some)
    return found, cosine


def cluster_centres(vectors: StoredVectors, count: int) -> NDArray[np.float32]:
    """Return the centres of so many clusters of the embeddings; raise ConfigError without faiss."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise missing_library_error(error) from error
    chance = np.random.default_rng(1)
    sample = chance.choice(len(vectors), min(len(vectors), _SAMPLE * count), replace=False)
    means = faiss.Kmeans(
        vectors.width, count, niter=_ROUNDS, spherical=True, seed=1,
        max_points_per_centroid=_SAMPLE, min_points_per_centroid=1,
    )  # fmt: skip
    means.train(vectors.take(np.sort(sample)))
    return np.asarray(means.centroids, np.float32)


def _nearest_clusters(vectors: StoredVectors, exact: int) -> NDArray[np.int32]:
    """Return the clusters around each embedding, the nearest first: shape (embeddings, n)."""
    if len(vectors) <= exact:
        return np.zeros((len(vectors), 1), np.int32)
    centres = cluster_centres(vectors, count := int(2 * len(vectors) ** 0.5))
    around = min(_AROUND, count)
    near = np.empty((len(vectors), around), np.int32)
    for start, block in vectors.blocks(_BLOCK):
        products = block @ centres.T
        some = np.argpartition(products, -around, axis=1)[:, -around:]
        order = np.take_along_axis(products, some, axis=1).argsort(axis=1)[:, ::-1]
        near[start : start + len(block)] = np.take_along_axis(some, order, axis=1)
    return near
