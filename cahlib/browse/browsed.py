"""A dataset as it was when a page on it was opened: rows, pictures, vectors, and views of them.

A view is a selection in an order. Rows are numbers from 0 in the order of the shards and their
pairs. Shards that cannot be read are left out of what is found, and named.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cahlib.browse.changes import ChangeWatch, DatasetChanged
from cahlib.browse.cluster_index import embeddings_digest, make_index, open_index
from cahlib.browse.dropped import DroppedCandidates
from cahlib.browse.nearest import NearestPairs, Vector
from cahlib.browse.pictures import PictureFiles
from cahlib.core.errors import CahError, ConfigError, RunError
from cahlib.core.wording import plural, verb
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import ShardManifest, committed_ids, no_dataset_error, read_manifest
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.query import PairQuery
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.vectors import StoredVectors, path_by_model, vector_files, vector_models
from cahlib.dataset.write.columns import Row
from cahlib.model.model_source import find_source, typed_judge
from cahlib.model.score_names import SIMILARITY, score_columns

#: Pairs that a search returns at most: nobody looks at more, and all others are less similar.
_FOUND = 1_000
#: Manifests that are read at a time.
_READERS = 8
#: Views that are kept, each 8 bytes a row.
_VIEWS = 12
#: Seconds that a filter may take.
_SECONDS = 30.0
#: Bars of a histogram, and pairs shown on each side of a cut.
_BARS, _BESIDE = 120, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The pairs that are shown, and their order."""

    where: str = ""  #: an SQL condition
    sort: str = ""  #: an SQL expression; "" is the order of the dataset or of the search
    descending: bool = True
    words: str = ""  #: search by text
    like: str = ""  #: search by a picture: the row of a pair, or the name of a picture sent here


@dataclass(frozen=True, slots=True)
class FoundRows:
    """The rows of a view, with the cosines of a search."""

    rows: NDArray[np.int64]
    cosines: Vector | None = None


class BrowsedDataset:
    """The committed shards of a dataset at one moment. Thread-safe."""

    def __init__(self, place: str, model: str = "", pretrained: str = "") -> None:
        """Read the manifests; raise ConfigError if there is no dataset, RunError without it.

        It is searched by the vectors of ``model``, if it has any, else by its own.
        """
        self.place, self.typed = place, (model, pretrained)
        self._changes = ChangeWatch(place)
        #: raises `changes.DatasetChanged` if shards have other pairs by now
        self.require_unchanged = self._changes.require_unchanged
        self.damaged: list[str] = []  #: shards whose manifests are damaged
        self.manifests = self._read_manifests()
        self._changes.compare(self.manifests)
        self.query = PairQuery(place, damaged="skip", seconds=_SECONDS, manifests=self.manifests)
        self.pictures = PictureFiles(self.manifests, place, self._uids)
        self.dropped = DroppedCandidates(self.manifests, place)
        self._faults: list[str] = []  #: of the index, sentences
        self._vectors: dict[str, Vector] = {}  #: of pictures and words searched for
        self._views: OrderedDict[View, FoundRows] = OrderedDict()
        self._lock = threading.Lock()  #: DuckDB and the readers of tables take turns

    def __len__(self) -> int:
        return self.query.rows

    @cached_property
    def model(self) -> str:
        """The model whose vectors are stored; "" if none or several are."""
        models = {each.model for each in self.manifests if each.rows}
        return models.pop() if len(models) == 1 else ""

    @cached_property
    def searched(self) -> str:
        """The model by whose vectors it is searched; "" if there is none."""
        model, weights = self.typed
        every = {name for each in self.manifests for name in vector_models(each)}
        if not model or (model in every and not weights):
            return model or self.model
        try:
            named = find_source(typed_judge(model, weights)).name
        except ConfigError:  # which is said when the model is needed
            return self.model
        return named if named in every else self.model

    @cached_property
    def scores(self) -> dict[str, str]:
        """The columns of scores with short labels, similarity first."""
        found = {SIMILARITY: SIMILARITY}
        own = [score_columns(self.model, [""], layout=layout)[""] for layout in (1, 2)]
        for name in dict.fromkeys(each for some in self.manifests for each in some.scores):
            label = name.removeprefix(own[0]).removeprefix(own[1])
            if label != SIMILARITY:  # that of its own model is the column similarity, too
                found[name] = label
        return found

    @cached_property
    def vectors(self) -> StoredVectors:
        """The embeddings of the pictures; raise ConfigError if there are none."""
        shards = [each for each in self.manifests if each.rows]
        if not self.searched and shards:
            raise ConfigError(
                "Several models scored this dataset, and their embeddings do not mix; name one "
                "with --model."
            )
        if not any(map(vector_models, shards)):
            raise ConfigError(
                "This dataset stores no embeddings of its pictures, so there is nothing to search "
                "by; a run with --forms images,embeddings stores them."
            )
        return StoredVectors(*vector_files(self.place, shards, self.searched))

    @cached_property
    def nearest(self) -> NearestPairs:
        """The embeddings to search in; raise as `vectors` does."""
        index, folder = None, files_at(self.place).folder
        try:
            index = open_index(folder, self.vectors, self._digest()) if folder else None
        except RunError as error:
            self._faults.append(str(error))
        return NearestPairs(self.vectors, index)

    def make_index(self, report: Callable[[str], None]) -> None:
        """Make the index for searches; raise ConfigError for a dataset at a URL."""
        folder = files_at(self.place).folder
        if folder is None:
            raise ConfigError(
                "index: it is made beside a dataset on this machine; copy the dataset here first."
            )
        make_index(folder, self.vectors, self._digest(), report)

    def _digest(self) -> str:
        return embeddings_digest(
            (each.shard.id, each.files[path_by_model(each, self.searched)].sha256)
            for each in self.manifests
            if each.rows
        )

    def notices(self) -> list[str]:
        """Return what is wrong with the dataset, a sentence each."""
        gone = [*self.damaged, *sorted(self.query.unreadable)]
        if not gone:
            return [*self._faults]
        named = ", ".join(gone[:5]) + " …" * (len(gone) > 5)
        return [
            f"{plural(len(gone), 'shard')} cannot be read and {verb(len(gone))} left out: {named}. "
            "See `cah verify`.",
            *self._faults,
        ]

    def hold(self, name: str, vector: Vector) -> None:
        """Keep the vector of a picture or of words by a name, for views."""
        with self._lock:
            self._vectors[name] = vector

    def holds(self, name: str) -> bool:
        """Return whether the vector of words or of a picture is known."""
        return name in self._vectors

    def find(self, view: View) -> FoundRows:
        """Return the rows of a view; raise ConfigError for an expression that is not valid."""
        with self._lock:
            if found := self._views.get(view):
                self._views.move_to_end(view)
                return found
            found = self._find(view)
            self._views[view] = found
            while len(self._views) > _VIEWS:
                self._views.popitem(last=False)
            return found

    def read(self, rows: list[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the metadata of rows, of all columns or some."""
        return self.query.read(rows, columns)

    def rows_of(self, uids: Sequence[str]) -> list[int]:
        """Return the rows of the pairs with these uids."""
        with self._lock:
            found = self.query.evaluate("uid")
        listed = pc.is_in(found, value_set=pa.array(uids, pa.string()))
        return [int(row) for row in np.flatnonzero(listed.to_numpy())]

    def histogram(self, column: str, view: View) -> dict[str, Any]:
        """Return the bars of a column over the rows of a view, and how many have no value."""
        rows = self.find(view).rows
        with self._lock:
            values = self.query.numbers(column)[rows]
        sound = values[np.isfinite(values)]
        if not len(sound):
            return {"edges": [], "counts": [], "none": len(rows)}
        low, high = float(sound.min()), float(sound.max())
        counts, edges = np.histogram(sound, _BARS, (low, high if high > low else low + 1))
        return {
            "edges": edges.tolist(), "counts": counts.tolist(), "none": len(rows) - len(sound),
        }  # fmt: skip

    def cut(self, column: str, at: float, view: View) -> dict[str, Any]:
        """Return how many rows of a view have at least this value, and those nearest to it."""
        if not math.isfinite(at):
            raise ConfigError("cut: give a number.")
        rows = self.find(view).rows
        with self._lock:
            values = self.query.numbers(column)[rows]
        above, below = np.flatnonzero(values >= at), np.flatnonzero(values < at)
        return {
            "above": len(above),
            "below": len(below),
            "none": len(rows) - len(above) - len(below),
            "rows_above": rows[_least(above, values)].tolist(),
            "rows_below": rows[_least(below, -values)].tolist(),
        }

    def _find(self, view: View) -> FoundRows:
        mask = self.query.mask(view.where) if view.where else None
        if view.words or view.like:
            rows, cosines = self.nearest.nearest(self._vector(view), _FOUND, mask)
            if view.sort:
                order = self.query.order(view.sort, np.sort(rows), descending=view.descending)
                by_row = dict(zip(rows.tolist(), cosines.tolist(), strict=True))
                return FoundRows(
                    order, np.array([by_row[row] for row in order.tolist()], np.float32)
                )
            return FoundRows(rows, cosines)
        rows = np.arange(len(self)) if mask is None else np.flatnonzero(mask)
        if view.sort:
            rows = self.query.order(view.sort, rows, descending=view.descending)
        return FoundRows(rows)

    def _vector(self, view: View) -> Vector:
        name = f"words:{view.words}" if view.words else view.like
        if name in self._vectors:
            return self._vectors[name]
        if not view.like.isdecimal() or int(view.like) >= len(self):
            raise ConfigError("search: that picture is no longer known; search for it again.")
        return self.nearest.vector(int(view.like))

    def _uids(self, shard: str) -> list[str]:
        """Return the uids of a shard's rows; raise RunError if it has others by now."""
        part = next(each for each in self.query.shards if each.shard == shard)
        try:
            with files_at(part.place).open(part_path("metadata", shard)) as file:
                uids = [str(uid) for uid in read_metadata(file, ["uid"])["uid"].to_pylist()]
        except (ValueError, OSError, KeyError) as error:
            raise RunError(f"The metadata of {shard} cannot be read ({error}).") from error
        if len(uids) != part.rows:  # else a row would show the picture of another pair
            raise DatasetChanged
        return uids

    def _read_manifests(self) -> list[ShardManifest]:
        ids = committed_ids(self._changes.names())
        with ThreadPoolExecutor(_READERS) as pool:  # at a URL most of it is waiting
            found = list(pool.map(self._manifest, ids))
        self.damaged += [id for id, each in zip(ids, found, strict=True) if each is None]
        # eight thumbnails a shard are not needed
        read = [replace(each, gallery=()) for each in found if each is not None]
        if not read:
            raise no_dataset_error(self.place)
        return read

    def _manifest(self, shard: str) -> ShardManifest | None:
        try:
            return read_manifest(self.place, shard)
        except CahError:
            return None


def _least(which: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return those with the least values, the least first."""
    chosen = values[which]
    count = min(_BESIDE, len(which))
    few = np.argpartition(chosen, count - 1)[:count] if count else np.empty(0, np.int64)
    return which[few[np.argsort(chosen[few], kind="stable")]]
