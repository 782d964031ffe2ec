"""The metadata of a dataset's pairs as one table, to be filtered, ordered and counted by SQL.

Only the columns that an expression names are read, from a folder or a URL. Rows are numbered from 0
in the order of the sorted shards and of the pairs in each, which is the order of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cahlib.core.errors import ConfigError, RunError
from cahlib.dataset.expression import Evaluator, is_number, shortened
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import ShardManifest, no_dataset_error, read_manifests
from cahlib.dataset.metadata import read_metadata, read_metadata_rows, read_metadata_schema
from cahlib.dataset.storage.files import UnreadableFile, files_at
from cahlib.dataset.write.columns import Row
from cahlib.fetch.politeness import registered_domain

_T = TypeVar("_T")

#: Columns that are computed, unless a dataset has its own of that name: where a pair is in the
#: dataset, the host of its URL, and its registered domain.
COMPUTED_COLUMNS: dict[str, pa.DataType] = {
    "shard": pa.string(), "position": pa.int64(), "host": pa.string(), "domain": pa.string(),
}  # fmt: skip

#: Rows that are evaluated at once: of ten columns of texts, some 200 MB.
_BATCH = 250_000

#: Shards that are read at a time; at a URL most of it is waiting.
_READERS = 8

#: Bytes of columns that are kept for the next expression.
_CACHE = 512 << 20

#: The host of a URL, as `host_name` finds it.
HOST_OF_URL = (
    r"lower(ltrim(regexp_extract(URL, '^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#]*@)?"
    r"(\[[^\]/?#]*|[^/?#:\[]*)', 1), '['))"
)


class ShardRows(NamedTuple):
    """The rows of a shard, and where its files are."""

    shard: str
    place: str | Path
    rows: int
    start: int  #: the number of its first row


class PairQuery:
    """The pairs of the dataset at a place, a folder or a URL; thread-safe.

    With ``damaged="skip"`` the columns of a shard that cannot be read are null, and its id is in
    `unreadable`. ``seconds`` limits each evaluation.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        damaged: Literal["raise", "skip"] = "raise",
        seconds: float | None = None,
        manifests: Sequence[ShardManifest] | None = None,
    ) -> None:
        """Read the manifests, unless they are given, in their order.

        Raise ConfigError if there is no dataset, RunError for damage.
        """
        self.unreadable = set[str]()
        self._skip, self._types = damaged == "skip", dict[str, pa.DataType]()
        found = read_manifests(place, damaged=damaged) if manifests is None else manifests
        self.shards = tuple(self._parts(place, found))
        self._starts = np.array([each.start for each in self.shards], np.int64)
        self._batches = [*_batches(self.shards)]
        self._cache: dict[tuple[int, str], pa.ChunkedArray] = {}
        self._sql = Evaluator(self.columns, seconds=seconds)

    @property
    def rows(self) -> int:
        """The number of pairs."""
        return self.shards[-1].start + self.shards[-1].rows if self.shards else 0

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """The columns by name: the computed ones, and those that any shard has."""
        return {**COMPUTED_COLUMNS, **self._types}

    def number_columns(self) -> list[str]:
        """Return the names of the columns that hold numbers."""
        return [
            name
            for name, kind in self.columns.items()
            if pa.types.is_integer(kind) or pa.types.is_floating(kind)
        ]

    def quoted(self, expression: str) -> str:
        """Return an expression as SQL has it: a column's name in quotes, for ``a-b`` is a minus."""
        is_column = expression in self.columns
        return '"' + expression.replace('"', '""') + '"' if is_column else expression

    def type_of(self, expression: str, option: str = "where") -> str:
        """Return the SQL type of an expression.

        Raise ConfigError, which begins with ``option``, if it may not or cannot be evaluated.
        """
        return self._sql.type_of(expression, option)

    def evaluate(self, expression: str, option: str = "where") -> pa.ChunkedArray:
        """Return the value of an expression for each row.

        Raise as `type_of` does, and RunError if a shard is damaged or out of reach.
        """
        self.type_of(expression, option)
        names = self._sql.columns_of(expression, option) or ["position"]
        found = []
        for number in range(len(self._batches)):
            read = self._lacking(number, names)
            columns = {
                name: read[name] if name in read else self._column(number, name) for name in names
            }
            table = pa.table(columns)
            found += self._sql.values(expression, table, option).chunks
        return pa.chunked_array(found) if found else pa.chunked_array([[]])

    def mask(self, where: str, option: str = "where") -> NDArray[np.bool_]:
        """Return for each row whether a condition holds; null counts as false, "" as true."""
        if not where.strip():
            return np.ones(self.rows, bool)
        if (kind := self.type_of(where, option)) != "BOOLEAN":
            raise ConfigError(
                f"{option}: {shortened(where)} is not a condition but a value of type {kind}; "
                "compare it with something, for example `similarity > 0.3`."
            )
        values = self.evaluate(where, option)
        return np.asarray(pc.fill_null(values, False).to_numpy(), bool) if self.rows else _NONE

    def numbers(self, expression: str, option: str = "by") -> NDArray[np.float64]:
        """Return the value of a numeric expression for each row; null is NaN."""
        if not is_number(kind := self.type_of(expression, option)):
            raise ConfigError(
                f"{option}: {shortened(expression)} is not a number but of type {kind}; numbers "
                f"are {', '.join(self.number_columns())}."
            )
        if self.rows and (name := self._number(expression)):
            values = pc.cast(self._whole(name), pa.float64(), safe=False)
        else:
            values = self.evaluate(f"CAST((\n{expression}\n) AS DOUBLE)", option)
        return np.asarray(values.to_numpy(), np.float64)

    def texts(self, expression: str, option: str = "per") -> pa.DictionaryArray:
        """Return the value of an expression for each row as text; null is ""."""
        self.type_of(expression, option)
        name = self._name(expression)
        if self.rows and (name in _TEXTS or self._types.get(name) == pa.string()):
            found = self._whole(name).dictionary_encode().unify_dictionaries().combine_chunks()
            return _without_nulls(found)
        values = self.evaluate(f"coalesce(CAST((\n{expression}\n) AS VARCHAR), '')", option)
        return pa.chunked_array(values, pa.string()).dictionary_encode().combine_chunks()

    def order(
        self, by: str, rows: NDArray[np.int64], *, descending: bool = True
    ) -> NDArray[np.int64]:
        """Return these ascending rows ordered by an expression, equal ones by row; null is last."""
        name = self._number(by)
        keys = self._whole(name) if name and self.rows else self.evaluate(by, "by")
        if pa.types.is_floating(keys.type) or (
            pa.types.is_integer(keys.type) and not keys.null_count
        ):  # a tenth of the time that Arrow takes for two keys
            values = keys.to_numpy()[rows]
            if descending:
                values = -values if pa.types.is_floating(keys.type) else ~values
            return np.asarray(rows[np.argsort(values, kind="stable")])
        keys = keys.take(pa.array(rows))
        order = pc.sort_indices(
            pa.table({"key": keys, "row": rows}),
            sort_keys=[("key", "descending" if descending else "ascending"), ("row", "ascending")],
        )
        return np.asarray(rows[order.to_numpy()])

    def histogram(
        self, expression: str, mask: NDArray[np.bool_] | None = None, *, bins: int = 50
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return edges and counts of a numeric expression, of all rows or those of a mask.

        The edges depend on all rows, so that the histograms of several masks are comparable.
        """
        values = self.numbers(expression)
        sound = np.isfinite(values)
        edges = np.histogram_bin_edges(values[sound], bins)
        counts, _ = np.histogram(values[sound if mask is None else sound & mask], edges)
        return edges, counts.astype(np.int64)

    def locate(self, row: int) -> tuple[ShardRows, int]:
        """Return the shard of a row, and the pair's position in it."""
        part = self.shards[int(np.searchsorted(self._starts, row, side="right")) - 1]
        return part, int(row) - part.start

    def read(self, rows: Sequence[int], columns: Sequence[str] | None = None) -> list[Row]:
        """Return the metadata of some rows, with shard and position; each shard is read once.

        Rows of an unreadable shard have these two alone.
        """
        places = [self.locate(row) for row in rows]
        wanted: dict[ShardRows, list[int]] = {}
        for part, position in places:
            wanted.setdefault(part, []).append(position)
        with ThreadPoolExecutor(_READERS) as pool:
            read = pool.map(lambda part: iter(self._rows(part, wanted[part], columns)), wanted)
            found = dict(zip(wanted, read, strict=True))
        return [
            {**next(found[part]), "shard": part.shard, "position": position}
            for part, position in places
        ]

    def _parts(self, place: str | Path, manifests: Iterable[ShardManifest]) -> Iterator[ShardRows]:
        start, alike, manifest = 0, set[Any](), None
        for manifest in manifests:
            if not manifest.rows:
                continue
            part = ShardRows(manifest.shard.id, manifest.place or place, manifest.rows, start)
            added = tuple(name for each in manifest.added for name in each.columns)
            kind = manifest.scores, manifest.forms, manifest.settings, added
            # shards of one run have the same columns
            if kind not in alike and (schema := self._schema(part)) is not None:
                alike.add(kind)
                for field in schema:
                    self._types.setdefault(field.name, field.type)
            start += part.rows
            yield part
        if manifest is None:
            raise no_dataset_error(place)

    def _schema(self, part: ShardRows) -> pa.Schema | None:
        return self._attempt(part, read_metadata_schema)

    def _rows(
        self, part: ShardRows, positions: Sequence[int], columns: Sequence[str] | None
    ) -> list[Row]:
        table = self._attempt(
            part, lambda file: read_metadata_rows(file, positions, part.rows, columns)
        )
        return [{} for _ in positions] if table is None else table.to_pylist()

    def _table(self, part: ShardRows, columns: Sequence[str] | None) -> pa.Table | None:
        def read(file: Path | BinaryIO) -> pa.Table:
            table = read_metadata(file, columns)
            if table.num_columns and table.num_rows != part.rows:
                raise ValueError(f"it has {table.num_rows} rows instead of {part.rows}")
            return table

        return self._attempt(part, read)

    def _attempt(self, part: ShardRows, read: Callable[[Path | BinaryIO], _T]) -> _T | None:
        """Return what is read from a shard's metadata, or None if it may be skipped."""
        path = part_path("metadata", part.shard)
        try:
            there = files_at(part.place)
            if there.folder and (there.folder / path).is_file():
                return read(there.folder / path)  # by Arrow itself, without Python between
            with there.open(path) as file:
                return read(file)
        except (ValueError, OSError, UnreadableFile) as error:
            if not self._skip:
                raise RunError(
                    f"shard {part.shard} cannot be read ({str(error).rstrip('.')}); see `cah "
                    "verify`."
                ) from error
            self.unreadable.add(part.shard)
            return None

    def _column(self, number: int, name: str) -> pa.ChunkedArray:
        """Return a column of a batch of shards."""
        if (number, name) in self._cache:
            return self._cache[number, name]
        parts = self._batches[number]
        if name in self._types:
            return self._read(number, [name])[name]
        if name == "host":
            found = self._hosts(number)
        elif name == "domain":
            hosts = self._hosts(number).combine_chunks()
            known = pa.array(
                [registered_domain(each) if each else each for each in hosts.dictionary.to_pylist()]
            ).dictionary_encode()  # many hosts have the same
            indices = known.indices.take(hosts.indices)
            found = pa.chunked_array([pa.DictionaryArray.from_arrays(indices, known.dictionary)])
        elif name == "shard":
            found = pa.chunked_array([pa.repeat(part.shard, part.rows) for part in parts])
        else:
            found = pa.chunked_array([np.arange(part.rows) for part in parts])
        self._keep(number, name, found)
        return found

    def _keep(self, number: int, name: str, column: pa.ChunkedArray) -> None:
        if sum(each.nbytes for each in self._cache.values()) + column.nbytes <= _CACHE:
            self._cache[number, name] = column

    def _name(self, expression: str) -> str:
        """Return the column that an expression is, or ""."""
        plain = expression[1:-1].replace('""', '"') if expression[:1] == '"' else expression
        is_column = plain in self.columns and expression in (plain, self.quoted(plain))
        return plain if is_column else ""

    def _number(self, expression: str) -> str:
        """Return the column of numbers that an expression is, or ""."""
        name = self._name(expression)
        return name if name in self.number_columns() else ""

    def _whole(self, name: str) -> pa.ChunkedArray:
        """Return a column for all rows."""
        batches = (self._column(number, name) for number in range(len(self._batches)))
        return pa.chunked_array([chunk for each in batches for chunk in each.chunks])

    def _lacking(self, number: int, names: Iterable[str]) -> dict[str, pa.ChunkedArray]:
        """Read those of some columns that are not kept, together: each file is opened once."""
        lacking = [
            name for name in names if name in self._types and (number, name) not in self._cache
        ]
        return self._read(number, lacking) if lacking else {}

    def _read(self, number: int, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """Return stored columns of a batch of shards."""
        chunks: dict[str, list[pa.Array]] = {name: [] for name in names}
        for part in self._batches[number]:
            table = self._table(part, names)
            for name, found in chunks.items():
                kind = self._types[name]
                if table is None or name not in table.column_names:  # unreadable, or without it
                    found.append(pa.nulls(part.rows, kind))
                else:
                    found += table[name].cast(kind).chunks
        read = {name: pa.chunked_array(each, self._types[name]) for name, each in chunks.items()}
        for name, column in read.items():
            self._keep(number, name, column)
        return read

    def _hosts(self, number: int) -> pa.ChunkedArray:
        urls = pa.table({"URL": self._column(number, "URL")})
        return self._sql.values(f"coalesce({HOST_OF_URL}, '')", urls, "host").dictionary_encode()


_NONE = np.zeros(0, bool)

#: Computed columns of texts, which are dictionaries.
_TEXTS = ("host", "domain")


def _without_nulls(found: pa.DictionaryArray) -> pa.DictionaryArray:
    """Return texts with "" in place of null."""
    if not found.null_count:
        return found
    texts = found.dictionary.to_pylist()
    if "" not in texts:
        texts.append("")
    codes = pc.fill_null(found.indices, texts.index(""))
    return pa.DictionaryArray.from_arrays(codes, pa.array(texts, pa.string()))


def _batches(parts: Sequence[ShardRows]) -> Iterator[list[ShardRows]]:
    """Yield the shards in groups of few rows."""
    batch = list[ShardRows]()
    for part in parts:
        if batch and sum(each.rows for each in batch) + part.rows > _BATCH:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch
