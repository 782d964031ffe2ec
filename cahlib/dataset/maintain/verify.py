"""Verify a dataset: every file against its manifest, and the rows of all files against each other.

Each file is read once, and none is trusted. Images are not decoded. Shards whose manifest is gone
are noticed by the list in `dataset.json`, and by the ledger if there is one.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cahlib.core.records import Stage
from cahlib.dataset.description import DESCRIPTION_FILE, Description, read_description
from cahlib.dataset.file_names import (
    DATASET_FILE,
    DATASET_PREFIXES,
    UNFINISHED_SUFFIXES,
    describe_obstacle,
    find_obstacles,
)
from cahlib.dataset.layout import dataset_folders, shard_paths, tar_number
from cahlib.dataset.maintain.verify_shard import ShardCheck, check_file
from cahlib.dataset.manifest import (
    ShardManifest,
    committed_ids,
    decode_manifest,
    is_conflicted_copy,
    manifest_path,
    no_dataset_error,
    tar_path,
)
from cahlib.dataset.storage.files import DatasetFiles, UnreadableFile, files_at
from cahlib.dataset.storage.hashed_file import temporary_path
from cahlib.dataset.tar_index import TAR_INDEX_FILES, check_tar_index, tar_size


class ProblemKind(enum.Enum):
    """The part of a dataset that a problem concerns, and so what repairs it."""

    SHARD = enum.auto()  #: a committed shard that is incomplete or damaged, by its id
    FOREIGN = enum.auto()  #: a complete shard of another dataset, or a foreign file, by id or path
    UNREADABLE = enum.auto()  #: a file that cannot be read, be it damaged or not, by its path
    LEFT = enum.auto()  #: a file that belongs to no shard, by its path
    UNFINISHED = enum.auto()  #: a shard that is being changed, or was when a command was killed
    DESCRIPTION = enum.auto()  #: dataset.json
    PAGE = enum.auto()  #: the report or the card, by its name
    VECTORS = enum.auto()  #: damaged vectors of a further model, which can be made again, by path


class Problem(NamedTuple):
    """Something that is wrong with a dataset."""

    kind: ProblemKind
    name: str
    sentence: str


def verify(place: str | Path, known: Collection[str] = ()) -> Iterator[str]:
    """Yield every problem of the dataset in a folder or at a URL, as a sentence.

    ``known`` are the ids of shards that are committed by a ledger. Raise ConfigError if there is no
    dataset.
    """
    return (each.sentence for each in find_problems(place, known))


def find_problems(place: str | Path, known: Collection[str] = ()) -> Iterator[Problem]:
    """Yield the same as records."""
    yield from _Check(place, known).problems()


class _Check:
    """The state of one dataset's verification, shard by shard."""

    def __init__(self, place: str | Path, known: Collection[str]) -> None:
        self._place, self._known, self._there = place, known, files_at(place)
        self._folders = dataset_folders(self._there.folders())
        self._sizes = self._there.sizes(self._folders)
        self._said: Description | None = None
        self._keys = _Keys()
        self._named = set[str]()  #: files that belong to shards
        self._settings = set[str]()
        self._counted = dict[str, int]()  #: samples by tar

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong."""
        there = self._there
        blocked = [*find_obstacles(there.folder)] if there.folder else []
        for path in blocked:
            yield Problem(ProblemKind.FOREIGN, path, f"{describe_obstacle(path)}.")
        yield from _readable(self._description())
        said, ids = self._said, committed_ids(self._sizes)
        listed = said.committed if said else ()
        if not (ids or listed or self._known):
            raise no_dataset_error(self._place)
        for id in ids:
            yield from self._shard(id)
        for id in sorted({*listed, *self._known} - {*ids}):
            where = DESCRIPTION_FILE if id in listed else "the ledger"
            yield Problem(
                ProblemKind.SHARD,
                id,
                f"{manifest_path(id)} is missing, but the shard is committed according to {where}.",
            )
        yield from (Problem(ProblemKind.SHARD, *each) for each in self._keys.problems())
        if said is None and DESCRIPTION_FILE not in self._sizes and self._settings - {""}:
            yield Problem(
                ProblemKind.DESCRIPTION, DESCRIPTION_FILE, f"{DESCRIPTION_FILE} is missing."
            )
        yield from _readable(_pages(there, said))
        miscounted = check_tar_index(self._place, self._counted)
        yield from _readable(Problem(ProblemKind.PAGE, *each) for each in miscounted)
        inside = {path for path in self._sizes for each in blocked if path.startswith(f"{each}/")}
        yield from _left(self._sizes, self._named | inside)

    def _description(self) -> Iterator[Problem]:
        try:
            self._said = read_description(self._place)
        except ValueError as error:
            yield Problem(
                ProblemKind.DESCRIPTION,
                DESCRIPTION_FILE,
                f"{DESCRIPTION_FILE} is damaged: {error}.",
            )

    def _shard(self, id: str) -> Iterator[Problem]:
        """Yield what is wrong with a shard that has a manifest."""
        path = manifest_path(id)
        parts = shard_paths(id, self._folders)
        self._named |= {path} | parts
        try:
            manifest = decode_manifest(self._there.read(path))
            if manifest.shard.id != id:
                raise ValueError(f"it belongs to {manifest.shard.id}")
        except ValueError as error:
            yield Problem(ProblemKind.SHARD, id, f"{path} is damaged: {error}.")
            return
        except UnreadableFile as error:  # it may name any tar
            self._named |= {each for each in self._sizes if tar_number(each) is not None}
            yield Problem(ProblemKind.UNREADABLE, path, str(error))
            return
        self._settings.add(manifest.settings)
        if fresh := _successor(self._there, id, self._sizes):
            # whichever of its files are renamed already, `recover_interrupted` completes it
            self._counted |= tar_size(fresh)
            both = {path, *manifest.files, *fresh.files}
            self._named |= both | {str(temporary_path(Path(name))) for name in both}
            yield Problem(
                ProblemKind.UNFINISHED,
                id,
                f"{path} is being changed, or that change was interrupted.",
            )
            return
        self._counted |= tar_size(manifest)
        yield from _foreign(manifest, self._said)
        # a killed run may have left some files here of a shard whose files are elsewhere
        own = () if manifest.place else manifest.files
        self._named -= parts - {*own}
        self._named |= {tar_path(manifest) or path} if own else set()
        shard = ShardCheck(files_at(manifest.place or self._place), manifest)
        sentences = chain(_account(path, manifest), shard.problems())
        wrong = [*_readable(Problem(ProblemKind.SHARD, id, sentence) for sentence in sentences)]
        yield from wrong
        yield from _readable(
            Problem(ProblemKind.VECTORS, *each) for each in shard.further_problems()
        )
        if not wrong and (uids := shard.uids()):
            # else a damaged shard could discredit a sound one with the same pair
            self._keys.add(id, uids)


def _readable(found: Iterator[Problem]) -> Iterator[Problem]:
    """Yield problems up to the first file that cannot be read."""
    try:
        yield from found
    except UnreadableFile as error:
        yield Problem(ProblemKind.UNREADABLE, str(error), str(error))


def _foreign(manifest: ShardManifest, said: Description | None) -> Iterator[Problem]:
    """Yield the problem of a shard with other settings than its dataset."""
    if said and said.digest and manifest.settings not in ("", said.digest):
        path = manifest_path(manifest.shard.id)
        other = f"{path} was made with other settings than those in {DESCRIPTION_FILE}."
        yield Problem(ProblemKind.FOREIGN, manifest.shard.id, other)


def _successor(there: DatasetFiles, id: str, sizes: Collection[str]) -> ShardManifest | None:
    """Return the sound manifest that is to replace a committed shard's, if any."""
    path = str(temporary_path(Path(manifest_path(id))))
    try:
        fresh = decode_manifest(there.read(path)) if path in sizes else None
    except (ValueError, UnreadableFile):  # it may be gone by now
        return None
    return fresh if fresh and fresh.shard.id == id else None


def _pages(there: DatasetFiles, said: Description | None) -> Iterator[Problem]:
    """Yield what is wrong with the report and the card."""
    for name, stored in said.pages.items() if said else ():
        for sentence in check_file(there, name, stored=stored, reader=lambda *_: iter(())):
            yield Problem(ProblemKind.PAGE, name, sentence)


def _left(sizes: Iterable[str], named: Collection[str]) -> Iterator[Problem]:
    """Yield the files that belong to no shard."""
    for path in sorted(sizes):
        if is_conflicted_copy(path) and path.startswith(DATASET_PREFIXES):
            kind = "is a conflicted copy by a cloud drive, and is ignored"
        elif "/" not in path or path in named or path in TAR_INDEX_FILES:
            continue
        elif DATASET_FILE.fullmatch(path):
            kind = (
                "is left over from an interrupted run"
                if path.endswith(UNFINISHED_SUFFIXES)
                else "is not part of a shard here"
            )
        else:
            yield Problem(ProblemKind.FOREIGN, path, f"{path} is not one of a dataset's files.")
            continue
        yield Problem(ProblemKind.LEFT, path, f"{path} {kind}.")


def _account(path: str, manifest: ShardManifest) -> Iterator[str]:
    """Yield which numbers of a manifest do not agree."""
    stats = manifest.stats
    for stage in Stage:
        if missing := stats.unaccounted(stage):
            yield f"{path} does not account for {missing} {stage.takes}."
    if stats.left[Stage.JUDGE] != manifest.rows:
        yield f"{path} counts {stats.left[Stage.JUDGE]} pairs, but has {manifest.rows} rows."


class _Keys:
    """The keys of all shards, 20 bytes per pair."""

    def __init__(self) -> None:
        self._shards: list[str] = []
        self._keys: list[np.ndarray[Any, Any]] = []

    def add(self, shard: str, uids: Sequence[str]) -> None:
        self._shards.append(shard)
        self._keys.append(np.frombuffer(bytes.fromhex("".join(uids)), dtype="V16"))

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield the second shard of each duplicate key, with a sentence."""
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
