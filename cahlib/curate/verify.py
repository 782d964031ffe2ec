"""Checks a dataset: every file against its seal, and the rows of all files against each other.

Each file is read once. The answer is sentences, and nothing is trusted: damaged files are its
business. It does not decode images. Shards whose seal is gone are missed by the list in
`dataset.json`, and by the ledger if there is one.
"""

from __future__ import annotations

import enum
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.curate import description, seal, tars
from cahlib.curate.description import Description
from cahlib.curate.files import Files, files
from cahlib.curate.layout import FOLDERS, LAYOUT, PAGES
from cahlib.curate.rows import ADDED, COLUMNS, Row, sample_id, schema, without_nulls
from cahlib.curate.seal import Sealed
from cahlib.curate.sink import PART, Stored, part
from cahlib.curate.tfrecord import Broken, records
from cahlib.errors import ConfigError
from cahlib.records import Stage

#: How far the cosine of two float16 vectors may lie from the similarity; 0.0003 is the most seen.
_ROUNDING = 0.01

#: How the file of a matrix of float16 begins (numpy/lib/format.py). numpy's own reader evaluates
#: the header as Python, and dies of a damaged one in many ways.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..{'descr': '<f2', 'fortran_order': False, "
    rb"'shape': \((\d+), (\d+)\), } *\n",
    re.DOTALL,
)

#: What a reader says of a damaged file.
_DAMAGE = tarfile.TarError, pa.ArrowException, Broken, ValueError, TypeError, KeyError

#: How the names begin of files that a drive may have copied.
_OURS = tuple(
    [f"{folder}/" for folder in FOLDERS]
    + [name.partition(".")[0] for name in (description.NAME, *PAGES)]
)

#: A file that a run may have made, whole or not yet; of the id is asked what `Shard.id` may be.
_PARTS = PART, ".trial"
_MADE = re.compile(
    "|".join(re.escape(str(part(Path(name)))) for name in tars.NAMES)
    + "|"
    + "|".join(
        rf"{folder}/(\.?{name.format('[A-Za-z0-9_-][A-Za-z0-9._-]*')}({re.escape(PART)})?|\.trial)"
        for form in (*LAYOUT.values(), f"{seal.FOLDER}/{{}}.json")
        for folder, _, name in [re.sub(r"\.(?=\w+$)", r"\.", form).partition("/")]
    )
)

_Reader = Callable[[str, BinaryIO], Iterator[str]]


class Kind(enum.Enum):
    """What a problem is about, and so what mends it."""

    SHARD = enum.auto()  #: a committed shard that is not whole, by its id
    FOREIGN = enum.auto()  #: a whole shard of another dataset, or another file: by its id or path
    LEFT = enum.auto()  #: a file that belongs to no shard, by its path
    UNFINISHED = enum.auto()  #: a shard that is being changed, or was when a command was killed
    DESCRIPTION = enum.auto()  #: dataset.json
    PAGE = enum.auto()  #: the report or the card, by its name


class Problem(NamedTuple):
    """Something that is wrong with a dataset."""

    kind: Kind
    name: str
    sentence: str


def verify(place: str | Path, known: Collection[str] = ()) -> Iterator[str]:
    """Every problem of the dataset in a folder or at a URL, as a sentence; none if it is sound.

    ``known`` are the ids of shards that a ledger calls committed. Raises ConfigError if there is
    no dataset.
    """
    return (each.sentence for each in problems(place, known))


def problems(place: str | Path, known: Collection[str] = ()) -> Iterator[Problem]:
    """The same as records."""
    there = files(place)
    sizes, said, keys, named = there.sizes(FOLDERS), None, _Keys(), set[str]()
    ids, settings, counted = seal.ids(sizes), set[str](), dict[str, int]()
    try:
        said = description.read(place)
    except ValueError as error:
        yield Problem(
            Kind.DESCRIPTION, description.NAME, f"{description.NAME} is damaged: {error}."
        )
    listed = said.committed if said else ()
    if not (ids or listed or known):
        raise ConfigError(f"{place} holds no dataset: there is no shard's seal in {seal.FOLDER}/.")
    for id in ids:
        path = seal.name(id)
        named |= {path, *(form.format(id) for form in LAYOUT.values())}
        try:
            sealed = seal.unpacked(there.read(path))
            if sealed.shard.id != id:
                raise ValueError(f"it is that of {sealed.shard.id}")
        except ValueError as error:
            yield Problem(Kind.SHARD, id, f"{path} is damaged: {error}.")
            continue
        settings.add(sealed.settings)
        if fresh := _successor(there, id, sizes):
            # whichever of its files have their new names by now, `dataset.sweep` finishes it
            counted |= tars.size_of(fresh)
            both = {path, *sealed.files, *fresh.files}
            named |= both | {str(part(Path(name))) for name in both}
            yield Problem(
                Kind.UNFINISHED, id, f"{path} is being changed, or that change was interrupted."
            )
            continue
        counted |= tars.size_of(sealed)
        yield from _foreign(sealed, said)
        shard = _Shard(files(sealed.place or place), sealed)
        wrong = [*_account(path, sealed), *shard.problems()]
        yield from (Problem(Kind.SHARD, id, sentence) for sentence in wrong)
        if not wrong and (uids := shard.uids()):
            keys.add(id, uids)  # a damaged shard must not cost a whole one that has its pair too
        # of a shard whose files are elsewhere a run that was killed may have left some here
        own = () if sealed.place else sealed.files
        named -= {form.format(id) for form in LAYOUT.values()} - {*own}
        named |= {seal.tar(sealed) or path} if own else set()
    for id in sorted({*listed, *known} - {*ids}):
        where = description.NAME if id in listed else "the ledger"
        yield Problem(
            Kind.SHARD, id, f"{seal.name(id)} is missing, but {where} calls the shard committed."
        )
    yield from (Problem(Kind.SHARD, *each) for each in keys.problems())
    if said is None and description.NAME not in sizes and settings - {""}:
        yield Problem(Kind.DESCRIPTION, description.NAME, f"{description.NAME} is missing.")
    yield from _pages(there, said)
    yield from (Problem(Kind.PAGE, *each) for each in tars.faults(place, counted))
    yield from _left(sizes, named)


def _foreign(sealed: Sealed, said: Description | None) -> Iterator[Problem]:
    """Yield the problem of a shard that has other settings than its dataset."""
    if said and said.digest and sealed.settings not in ("", said.digest):
        path = seal.name(sealed.shard.id)
        other = f"{path} was made with other settings than {description.NAME} says."
        yield Problem(Kind.FOREIGN, sealed.shard.id, other)


def _successor(there: Files, id: str, sizes: Collection[str]) -> Sealed | None:
    """Return the manifest that is to replace a committed shard's, if there is a whole one."""
    path = str(part(Path(seal.name(id))))
    try:
        fresh = seal.unpacked(there.read(path)) if path in sizes else None
    except (ValueError, FileNotFoundError):
        return None
    return fresh if fresh and fresh.shard.id == id else None


def _pages(there: Files, said: Description | None) -> Iterator[Problem]:
    """What is wrong with the report and the card."""
    for name, stored in said.pages.items() if said else ():
        for sentence in _checked(there, name, stored=stored, reader=lambda *_: iter(())):
            yield Problem(Kind.PAGE, name, sentence)


def _left(sizes: Iterable[str], named: Collection[str]) -> Iterator[Problem]:
    """The files that no shard has."""
    for path in sorted(sizes):
        if seal.conflicted(path) and path.startswith(_OURS):
            kind = "is a conflicted copy, made by a cloud drive, and counts for nothing"
        elif "/" not in path or path in named or path in tars.NAMES:
            continue
        elif _MADE.fullmatch(path):
            kind = (
                "is left of an interrupted run"
                if path.endswith(_PARTS)
                else "is not part of a shard here"
            )
        else:
            yield Problem(Kind.FOREIGN, path, f"{path} is none of a dataset's files.")
            continue
        yield Problem(Kind.LEFT, path, f"{path} {kind}.")


def _account(path: str, sealed: Sealed) -> Iterator[str]:
    """Whether the numbers of a seal agree."""
    tally = sealed.tally
    for stage in Stage:
        if missing := tally.unaccounted(stage):
            yield f"{path} does not account for {missing} {stage.takes}."
    if tally.left[Stage.JUDGE] != sealed.rows:
        yield f"{path} counts {tally.left[Stage.JUDGE]} pairs, but has {sealed.rows} rows."


class _Shard:
    """The check of one shard's files: the metadata first, then the others against it."""

    def __init__(self, data: Files, sealed: Sealed) -> None:
        self._data, self._sealed = data, sealed
        self._rows: list[Row] | None = None
        self._vectors: list[np.ndarray[Any, Any]] = []

    def problems(self) -> Iterator[str]:
        """What is wrong with them."""
        readers: dict[str, _Reader] = {
            "metadata": self._metadata,
            "images": self._images,
            "img_emb": self._matrix,
            "text_emb": self._matrix,
            "tfrecords": self._records,
            "optouts": self._evidence,
        }
        for form, reader in readers.items():
            path = LAYOUT[form].format(self._sealed.shard.id)
            if form == "images":
                path = seal.tar(self._sealed) or path
            if stored := self._sealed.files.get(path):
                yield from _checked(self._data, path, stored=stored, reader=reader)
        yield from self._cosines()

    def uids(self) -> list[str]:
        """Return the keys of its pairs, once its problems were looked for."""
        return [row["uid"] for row in self._rows or ()]

    def _metadata(self, path: str, file: BinaryIO) -> Iterator[str]:
        try:
            table = pq.read_table(io.BytesIO(file.read()))
        except OSError as error:  # pyarrow's word for some kinds of damage
            raise ValueError(str(error)) from error
        lacking = {*ADDED} - {*table.column_names}
        wanted = [each for each in schema(()) if each.name not in lacking]
        if list(table.schema)[: len(wanted)] != wanted:
            yield f"{path} has other columns than a dataset's metadata."
            return
        rows = table.to_pylist()
        yield from _numbers(path, len(rows), wanted=self._sealed.rows)
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
                ("json", without_nulls({name: row.get(name) for name in COLUMNS})),
                ("txt", row["TEXT"]),
            )
        )
        with tarfile.open(fileobj=file, mode="r|") as tar:
            yield from self._compared(path, _members(tar), wanted=list(wanted), each=3)

    def _records(self, path: str, file: BinaryIO) -> Iterator[str]:
        found = (
            (each["sampleID"], each["label"], each["height"], each["width"])
            for each in records(file)
        )
        wanted = [
            (str(row["SAMPLE_ID"]).encode(), row["TEXT"].encode(), row["HEIGHT"], row["WIDTH"])
            for row in self._rows or ()
        ]
        yield from self._compared(path, found, wanted=wanted)

    def _matrix(self, path: str, file: BinaryIO) -> Iterator[str]:
        data = file.read()
        if not (header := _NPY.match(data)):
            yield f"{path} holds no rows of float16."
            return
        shape = int(header[1]), int(header[2])
        vectors = np.frombuffer(data, np.float16, offset=header.end()).reshape(shape)
        yield from _numbers(path, len(vectors), wanted=self._sealed.rows)
        self._vectors.append(vectors)

    def _evidence(self, path: str, file: BinaryIO) -> Iterator[str]:
        lines = [json.loads(line) for line in file.read().splitlines()]
        yield from _numbers(path, len(lines), wanted=self._sealed.optouts + self._sealed.overruled)

    def _cosines(self) -> Iterator[str]:
        """Whether the two embeddings of each row lie as far apart as its similarity says."""
        if self._rows is None or [len(v) for v in self._vectors] != [len(self._rows)] * 2:
            return
        images, texts = (vectors.astype(np.float32) for vectors in self._vectors)
        wanted = np.array([row["similarity"] for row in self._rows], np.float32)
        away = ~(np.abs((images * texts).sum(axis=1) - wanted) <= _ROUNDING)
        if away.any():
            yield (
                f"{self._sealed.shard.id}: the embeddings of row {away.argmax()} do not give its "
                "similarity."
            )

    def _compared(
        self, path: str, found: Iterable[Any], *, wanted: Sequence[Any], each: int = 1
    ) -> Iterator[str]:
        """Whether a file has the pairs of the metadata, in their order; the first that differs."""
        number, wrong = 0, None
        for item in found:
            if wrong is None and (number >= len(wanted) or item != wanted[number]):
                wrong = number // each
            number += 1
        if self._rows is None:
            return
        yield from _numbers(path, number / each, wanted=len(self._rows), where="metadata")
        if wrong is not None and wrong < len(self._rows):
            yield f"{path}: row {wrong} is not the pair that the metadata has there."


class _Keys:
    """The keys of all shards, 20 bytes a pair."""

    def __init__(self) -> None:
        self._shards: list[str] = []
        self._keys: list[np.ndarray[Any, Any]] = []

    def add(self, shard: str, uids: Sequence[str]) -> None:
        self._shards.append(shard)
        self._keys.append(np.frombuffer(bytes.fromhex("".join(uids)), dtype="V16"))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Keys that are there twice: the second shard that has one, and a sentence."""
        if not self._keys:
            return
        keys = np.concatenate(self._keys)
        shard = np.repeat(np.arange(len(self._keys)), [len(part) for part in self._keys])
        order = np.argsort(keys, kind="stable")
        again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        for at in again:
            first, second = (self._shards[shard[order[i]]] for i in (at, at + 1))
            uid = keys[order[at]].tobytes().hex()
            yield second, f"The pair {uid} is in the dataset twice: in {first} and in {second}."


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash, self._size = file, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        self._size += len(data)
        return data

    def rest(self) -> Stored:
        """Read to the end; what the whole file looks like."""
        while self.read(1 << 20):
            pass
        return Stored(size=self._size, sha256=self._hash.hexdigest())


def _checked(data: Files, path: str, *, stored: Stored, reader: _Reader) -> Iterator[str]:
    """Read a file by its form and hold it to its checksum."""
    if not data.exists(path):
        yield f"{path} is missing."
        return
    with data.open(path) as file:
        hashed = _Hashed(file)
        try:
            yield from reader(path, cast(BinaryIO, hashed))
        except _DAMAGE as error:
            yield f"{path} cannot be read: {error}."
        if hashed.rest() != stored:
            yield f"{path} is not as it was written: its checksum differs."


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, Any]]:
    """The files of a tar with what can be compared of them."""
    for member in tar:
        content: Any = None
        if member.isfile() and member.name.endswith((".json", ".txt")):
            content = cast(BinaryIO, tar.extractfile(member)).read().decode()
            if member.name.endswith(".json"):
                values = json.loads(content)
                content = without_nulls({name: values.get(name) for name in COLUMNS})
        yield member.name, content


def _numbers(path: str, number: float, *, wanted: int, where: str = "seal") -> Iterator[str]:
    if number != wanted:
        yield f"{path} has {number:g} rows, the {where} {wanted}."
