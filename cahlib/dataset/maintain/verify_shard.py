"""Verify the files of one shard: each against its manifest, and their rows against each other.

Each file is read once, and damage of any kind is reported, not raised. Images are not decoded, and
nothing here knows other shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cahlib.core.lists import md5_digest
from cahlib.core.records import DROP_REASONS, ERASED_REASONS, Stage, Stats
from cahlib.dataset.layout import LAYOUT, further_model, vectors_path
from cahlib.dataset.manifest import ShardManifest, tar_path
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.outcomes import KEPT, outcome_schema
from cahlib.dataset.storage.files import DatasetFiles
from cahlib.dataset.storage.hashed_file import FileRecord
from cahlib.dataset.write.columns import (
    COLUMNS,
    OPTIONAL_COLUMNS,
    Row,
    arrow_schema,
    fill_nulls,
    sample_id,
)
from cahlib.dataset.write.tfrecord import DamagedRecord, read_tfrecords
from cahlib.model.score_names import column_name, similarity_column

#: Tolerance of the cosine of two float16 vectors; 0.0003 is the largest difference seen.
_ROUNDING = 0.01

#: The header of a float16 matrix (numpy/lib/format.py). numpy's own reader evaluates it as Python,
#: and raises all kinds of errors if it is damaged.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '<f2', 'fortran_order': False, "
    rb"'shape': \((\d+), (\d+)\), } *\n",
    re.DOTALL,
)

#: What readers raise for a damaged file.
_DAMAGE = tarfile.TarError, pa.ArrowException, DamagedRecord, ValueError, TypeError, KeyError

#: Reasons of rows that must not lead to their images.
_ERASED = {reason.value for reason in ERASED_REASONS}

_Reader = Callable[[str, BinaryIO], Iterator[str]]


class ShardCheck:
    """The verification of one shard: the metadata first, then the other files against it."""

    def __init__(self, data: DatasetFiles, manifest: ShardManifest) -> None:
        self._data, self._manifest = data, manifest
        self._rows: list[Row] | None = None
        #: by model, "" for the dataset's own
        self._vectors: dict[str, list[np.ndarray[Any, Any]]] = defaultdict(list)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong."""
        readers: dict[str, _Reader] = {
            "metadata": self._metadata,
            "images": self._images,
            "img_emb": self._matrix,
            "text_emb": self._matrix,
            "tfrecords": self._records,
            "optouts": self._evidence,
            "outcomes": self._outcomes,
        }
        for form, reader in readers.items():
            path = LAYOUT[form].format(self._manifest.shard.id)
            if form == "images":
                path = tar_path(self._manifest) or path
            if stored := self._manifest.files.get(path):
                yield from check_file(self._data, path, stored=stored, reader=reader)
        yield from self._cosines("")

    def further_problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the vectors of further models, after `problems`: path, why."""
        for path in filter(further_model, self._manifest.files):
            stored = self._manifest.files[path]
            for why in check_file(self._data, path, stored=stored, reader=self._matrix):
                yield path, why
        for model in filter(None, [*self._vectors]):
            path = vectors_path("img_emb", self._manifest.shard.id, model)
            yield from ((path, why) for why in self._cosines(model))

    def uids(self) -> list[str]:
        """Return the keys of its pairs, after `problems`."""
        return [row["uid"] for row in self._rows or ()]

    def _metadata(self, path: str, file: BinaryIO) -> Iterator[str]:
        try:
            table = read_metadata(io.BytesIO(file.read()))
        except OSError as error:  # pyarrow's error for some kinds of damage
            raise ValueError(str(error)) from error
        lacking = {*OPTIONAL_COLUMNS} - {*table.column_names}
        wanted = [each for each in arrow_schema(()) if each.name not in lacking]
        if list(table.schema)[: len(wanted)] != wanted:
            yield f"{path} does not have the columns of a dataset's metadata."
            return
        rows = table.to_pylist()
        yield from _numbers(path, len(rows), wanted=self._manifest.rows)
        for at, row in enumerate(rows):
            digest = hashlib.md5((row["URL"] + row["TEXT"]).encode()).hexdigest()
            if (row["uid"], row["SAMPLE_ID"]) != (digest, sample_id(digest)):
                yield f"{path}: the key of row {at} is not that of its URL and TEXT."
                return
        self._rows = rows

    def _images(self, path: str, file: BinaryIO) -> Iterator[str]:
        wanted = (
            (f"{row['uid']}.{ending}", content)
            for row in self._rows or ()
            for ending, content in (
                (row["format"], None),
                ("json", fill_nulls({name: row.get(name) for name in COLUMNS})),
                ("txt", row["TEXT"]),
            )
        )
        with tarfile.open(fileobj=file, mode="r|") as tar:
            yield from self._compared(path, _members(tar), wanted=list(wanted), each=3)

    def _records(self, path: str, file: BinaryIO) -> Iterator[str]:
        found = (
            (each["sampleID"], each["label"], each["height"], each["width"])
            for each in read_tfrecords(file)
        )
        wanted = [
            (str(row["SAMPLE_ID"]).encode(), row["TEXT"].encode(), row["HEIGHT"], row["WIDTH"])
            for row in self._rows or ()
        ]
        yield from self._compared(path, found, wanted=wanted)

    def _matrix(self, path: str, file: BinaryIO) -> Iterator[str]:
        data = file.read()
        if not (header := _NPY.match(data)):
            yield f"{path} is not a matrix of float16."
            return
        shape = int(header[1]), int(header[2])
        vectors = np.frombuffer(data, np.float16, offset=header.end()).reshape(shape)
        yield from _numbers(path, len(vectors), wanted=self._manifest.rows)
        self._vectors[further_model(path) or ""].append(vectors)

    def _evidence(self, path: str, file: BinaryIO) -> Iterator[str]:
        lines = [json.loads(line) for line in file.read().splitlines()]
        yield from _numbers(
            path, len(lines), wanted=self._manifest.optouts + self._manifest.overruled
        )

    def _outcomes(self, path: str, file: BinaryIO) -> Iterator[str]:
        try:
            table = read_metadata(io.BytesIO(file.read()))
        except OSError as error:  # as for the metadata
            raise ValueError(str(error)) from error
        wanted = [*outcome_schema()]
        if list(table.schema)[: len(wanted)] != wanted:
            yield f"{path} does not have the columns of outcomes."
            return
        yield from check_outcomes(path, table, self._manifest.stats)
        uids = {row["uid"] for row in self._rows or ()}
        kept = table.filter(pc.equal(table["reason"], KEPT))["uid"].to_pylist()
        if self._rows is not None and {*kept} != uids:
            yield f"{path}: the kept candidates are not the pairs in the metadata."

    def _cosines(self, model: str) -> Iterator[str]:
        """Yield the first row whose embeddings do not give its similarity by a model."""
        both = self._vectors[model]
        if self._rows is None or [len(v) for v in both] != [len(self._rows)] * 2:
            return
        images, texts = (vectors.astype(np.float32) for vectors in both)
        is_own = model in ("", column_name(self._manifest.model))
        column = "similarity" if is_own else similarity_column(model)
        # a further model may be unable to read an image, and has zeros and no similarity then
        zeros = bool(model) & ~images.any(axis=1)
        wanted = np.array([row.get(column) for row in self._rows], np.float32)
        away = ~(np.abs((images * texts).sum(axis=1) - wanted) <= _ROUNDING) & ~(
            zeros & np.isnan(wanted)
        )
        if away.any():
            of = f"by {model} " if model else ""
            yield (
                f"{self._manifest.shard.id}: the embeddings {of}of row {away.argmax()} do not give "
                "its similarity."
            )

    def _compared(
        self, path: str, found: Iterable[Any], *, wanted: Sequence[Any], each: int = 1
    ) -> Iterator[str]:
        """Yield where a file first differs from the metadata, row by row."""
        number, wrong = 0, None
        for item in found:
            if wrong is None and (number >= len(wanted) or item != wanted[number]):
                wrong = number // each
            number += 1
        if self._rows is None:
            return
        yield from _numbers(path, number / each, wanted=len(self._rows), where="metadata")
        if wrong is not None and wrong < len(self._rows):
            yield f"{path}: row {wrong} is not the pair of that row in the metadata."


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        self._size += len(data)
        return data

    def rest(self) -> FileRecord:
        """Read to the end, and return the record of the whole file."""
        while self.read(1 << 20):
            pass
        return FileRecord(size=self._size, sha256=self._hash.hexdigest())


def check_file(
    data: DatasetFiles, path: str, *, stored: FileRecord, reader: _Reader
) -> Iterator[str]:
    """Yield what is wrong with a file, by its reader and its checksum."""
    if not data.exists(path):
        yield f"{path} is missing."
        return
    with data.open(path) as file, data.reading(path):
        hashed = _Hashed(file)
        try:
            yield from reader(path, cast(BinaryIO, hashed))
        except _DAMAGE as error:
            yield f"{path} cannot be read: {error}."
        if hashed.rest() != stored:
            yield f"{path} was changed after it was written: its checksum differs."


def check_outcomes(path: str, table: pa.Table, stats: Stats) -> Iterator[str]:
    """Yield how a shard's outcomes differ from its counts, or are not what they should be."""
    if table["position"].to_pylist() != [*range(stats.entered[Stage.FETCH])]:
        yield f"{path} does not have one row per candidate, in their order."
        return
    found = Counter(table["reason"].to_pylist())
    reasons = DROP_REASONS[Stage.FETCH] | DROP_REASONS[Stage.JUDGE]
    wanted = {name: n for name, reason in reasons.items() if (n := stats.dropped[reason])}
    for name, number in {KEPT: stats.left[Stage.JUDGE], **wanted}.items():
        if found.pop(name, 0) != number:
            yield f"{path} has another number of rows with the reason {name} than the manifest."
    for name in found:
        yield f"{path} has rows with the reason {name}, which the manifest does not count."
    rows = zip(*(table[name].to_pylist() for name in ("reason", "uid", "url", "text")), strict=True)
    for at, (reason, *words) in enumerate(rows):
        if reason in _ERASED:
            sound = not any(words)
        else:
            sound = None not in words and words[0] == md5_digest(words[1] + words[2]).hex()
        if not (sound or words == [None, None, None]):
            yield f"{path}: the key of row {at} is not that of its url and text."
            return


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, Any]]:
    """Yield the names of a tar's members, with the content that is compared."""
    for member in tar:
        content: Any = None
        if member.isfile() and member.name.endswith((".json", ".txt")):
            content = cast(BinaryIO, tar.extractfile(member)).read().decode()
            if member.name.endswith(".json"):
                values = json.loads(content)
                content = fill_nulls({name: values.get(name) for name in COLUMNS})
        yield member.name, content


def _numbers(path: str, number: float, *, wanted: int, where: str = "manifest") -> Iterator[str]:
    if number != wanted:
        yield f"{path} has {number:g} rows, the {where} {wanted}."
