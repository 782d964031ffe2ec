"""Puts the pairs of a shard into the dataset, all or nothing.

    metadata/metadata_<shard>.parquet   one row a pair: LAION's columns first, then ours
    images/<shard>.tar                  WebDataset: <uid>.<format>, <uid>.json, <uid>.txt; it gets a
                                        number later (`cahlib.dataset.maintain.numbering`)
    img_emb/img_emb_<shard>.npy         float16, row by row as in the parquet
    text_emb/text_emb_<shard>.npy       the same of the texts
    tfrecords/<shard>.tfrecord          on request
    optouts/<shard>.jsonl               the evidence for each image that its owner refused
    shards/<shard>.json                 the seal, written last
    dataset.json                        the settings, and which shards are committed

One set of files a shard: a shard that is done is never touched again, and one that was interrupted
leaves nothing. The three folders of embeddings and metadata are named as clip-retrieval names its
own, so that it, autofaiss and embedding-reader take the dataset's folder as it is. They join npy
and parquet by the order of the sorted names, and skip an npy without rows but not its parquet: so a
shard in which nothing was kept has no files at all, only its seal.

It does not know where images come from, nor what the model thinks of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet as pq

from cahlib.atomic import TEMPORARY_SUFFIX
from cahlib.dataset.layout import (
    CURRENT_LAYOUT,
    FOLDERS,
    MANIFESTS,
    ONE_EXTENSION,
    has_images,
    part_path,
)
from cahlib.dataset.manifest import (
    ShardManifest,
    decode_manifest,
    encode_manifest,
    manifest_path,
)
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.hashed_file import FileRecord, HashedFile, temporary_path
from cahlib.dataset.write.columns import (
    REENCODED_FROM,
    Row,
    arrow_schema,
    canonical_json,
    host_of,
    make_row,
)
from cahlib.dataset.write.formats import FormatWriter, MatrixWriter, ParquetWriter, WebDatasetWriter
from cahlib.dataset.write.gallery import Gallery
from cahlib.dataset.write.reencode import reencode_as_jpeg
from cahlib.dataset.write.tfrecord import TFRecordWriter
from cahlib.errors import disk_errors
from cahlib.model.open_nsfw import OPEN_NSFW, nsfw_band
from cahlib.records import Judged, OptOut, Parcel, Reason, Stage, Tally

#: Why a pair is in the dataset already.
_AGAIN = (Reason.PAIR_SEEN, Reason.SAME_IMAGE, Reason.NEAR_DUPLICATE)

#: Hosts that a seal names.
_DOMAINS = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """What is the same for all shards of a dataset."""

    model: str  #: the name of model and weights, as in the scores
    threshold: float
    scores: Mapping[str, str]  #: the columns of all scores that a pair may have
    forms: tuple[str, ...]  #: of "images" or "images:jpg", "embeddings", "tfrecords"
    versions: Mapping[str, str]  #: of what judges
    settings: str = ""  #: the digest of the settings that make it
    layout: int = CURRENT_LAYOUT


def write_shard(
    folder: Path,
    judged: Iterable[Judged],
    *,
    parcel: Parcel,
    recipe: DatasetSpec,
    tally: Tally,
    again: Callable[[Judged], Reason | None],
) -> ShardManifest:
    """Put a parcel's judged images into the dataset, sealed; in memory is one image at a time.

    ``tally`` is that of the judging: a pair that the dataset has ``again`` is moved in it from the
    kept to the lost. What ``judged`` raises goes through, and nothing is left on disk.
    Raises ConfigError if the folder cannot be written, RunError if the disk fails.
    """
    account, shard = PairStats(), parcel.shard.id
    with ExitStack() as undo:
        shelf = ShardWriter(folder, undo)
        writers = list(open_writers(shelf, shard, recipe))
        for each in _unseen(judged, again):
            account.count(each)
            if each.reason is None:
                pair, values = _stored(each, recipe)
                for writer in writers:
                    writer.add(pair, values)
        # Not before its stage has ended: that counts in the same tally, on another thread.
        tally.left[Stage.JUDGE] -= account.again.total()
        tally.lost.update(account.again)
        if account.rows:
            for writer in writers:
                writer.close()
        else:
            shelf.clear()
        if parcel.optouts:
            _testify(shelf.sink(part_path("optouts", shard)), parcel.optouts)
        stored = shelf.close()
        sealed = _sealed(account, parcel, recipe=recipe, tally=parcel.tally + tally, stored=stored)
        shelf.publish(sealed)
        undo.pop_all()
    return sealed


def recover_interrupted(folder: Path) -> None:
    """Undo the making of a shard that was interrupted, and finish the exchange of one."""
    with disk_errors(folder):
        for path in sorted((folder / MANIFESTS).glob(f".*.json{TEMPORARY_SUFFIX}")):
            if fresh := _read(path):
                before = _read(folder / manifest_path(fresh.shard.id))
                if before is None:
                    _unmake(folder, fresh)
                elif _is_there(folder, fresh, before):
                    _exchange(folder, fresh, before)
        for each in FOLDERS:
            for path in (folder / each).glob(f".*{TEMPORARY_SUFFIX}"):
                path.unlink()


def read_uids(place: str | Path, sealed: ShardManifest) -> list[str]:
    """The keys of a shard's pairs, in their order in every file."""
    return list(read_similarities(place, sealed))


def read_similarities(place: str | Path, sealed: ShardManifest) -> dict[str, float]:
    """Return the similarity of each of a shard's pairs by its key, in their order in every file."""
    path = part_path("metadata", sealed.shard.id)
    if path not in sealed.files:
        return {}
    with files_at(sealed.place or place).open(path) as file:
        table = pq.read_table(file, columns=["uid", "similarity"])
        return dict(zip(table["uid"].to_pylist(), table["similarity"].to_pylist(), strict=True))


def _stored(judged: Judged, recipe: DatasetSpec) -> tuple[Judged, Row]:
    """Return a pair as the forms store it, and its metadata."""
    if ONE_EXTENSION not in recipe.forms:
        return judged, _row(judged, recipe)
    pair = dataclasses.replace(judged, image=reencode_as_jpeg(judged.image))
    values = _row(pair, recipe)
    values[REENCODED_FROM] = "" if pair.image is judged.image else judged.image.format
    return pair, values


def _row(pair: Judged, recipe: DatasetSpec) -> Row:
    return make_row(pair, model=recipe.model, scores=recipe.scores, layout=recipe.layout)


def _read(path: Path) -> ShardManifest | None:
    """A seal on this machine, or None if there is no whole one."""
    try:
        return decode_manifest(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _unmake(folder: Path, fresh: ShardManifest) -> None:
    for name in fresh.files:
        (folder / name).unlink(missing_ok=True)


def _is_there(folder: Path, fresh: ShardManifest, before: ShardManifest) -> bool:
    """Return whether all files of a successor are there, by their sizes.

    A copy that was made during a change and brought up to date later still has that change's
    manifest, and none of its files.
    """

    def has(name: str, stored: FileRecord) -> bool:
        path = folder / name
        return temporary_path(path).exists() or (
            path.exists() and path.stat().st_size == stored.size
        )

    kept = {*before.files.values()}
    return all(stored in kept or has(name, stored) for name, stored in fresh.files.items())


def _exchange(folder: Path, fresh: ShardManifest, before: ShardManifest) -> None:
    """Give the files of a sealed shard's successor their names; may be done again after a crash."""
    old = {stored: name for name, stored in before.files.items() if name not in fresh.files}
    for name, stored in fresh.files.items():
        made, moved = temporary_path(folder / name), folder / old.get(stored, name)
        if made.exists():  # what did not change has none
            made.replace(folder / name)
        elif name not in before.files and moved.exists():  # it has another name
            moved.replace(folder / name)
    for name in before.files.keys() - fresh.files.keys():
        (folder / name).unlink(missing_ok=True)
    last = folder / manifest_path(fresh.shard.id)
    temporary_path(last).replace(last)


def _unseen(judged: Iterable[Judged], again: Callable[[Judged], Reason | None]) -> Iterator[Judged]:
    """The same images, but what the dataset has already is dropped."""
    own: set[str] = set()
    for each in judged:
        if each.reason is None:
            uid = each.image.candidate.uid
            reason = Reason.PAIR_SEEN if uid in own else again(each)
            each = dataclasses.replace(each, reason=reason)
            own.add(uid)
        yield each


class PairStats:
    """What a seal tells about the pairs beside their number."""

    def __init__(self) -> None:
        self.rows, self.sum = 0, 0.0
        self.again = Counter[Reason]()  # pairs that the dataset has already
        self.kept, self.dropped = Counter[int](), Counter[int]()
        self.domains = Counter[str]()
        self.opinions: dict[str, Counter[str]] = {}  # by label, then by the second classifier
        self.gallery = Gallery()

    def count(self, judged: Judged) -> None:
        if judged.reason in _AGAIN:
            self.again[judged.reason] += 1
        self.gallery.offer(judged)
        # 0.29 * 100 is 28.999…: without the nudge the bins' edges would be off by one.
        bin = int((judged.similarity + 1) * 100 + 1e-6) - 100
        if judged.reason is not None:
            self.dropped[bin] += 1
            return
        self.kept[bin] += 1
        self.rows += 1
        self.sum += judged.similarity
        self.domains[host_of(judged.image.candidate.url)] += 1
        if (second := judged.scores.get(OPEN_NSFW)) is not None:
            self.opinions.setdefault(judged.nsfw, Counter())[nsfw_band(second)] += 1

    def most(self) -> dict[str, int]:
        """The hosts that gave the most pairs."""
        return dict(self.domains.most_common(_DOMAINS))


class ShardWriter:
    """The files of a shard in the making; ``undo`` is told how to unmake each of them."""

    def __init__(self, folder: Path, undo: ExitStack) -> None:
        self._folder, self._undo = folder, undo
        self._sinks: dict[str, HashedFile] = {}

    def sink(self, path: str) -> HashedFile:
        """A new file, by its path in the dataset."""
        sink = self._sinks[path] = HashedFile(self._folder / path)
        self._undo.callback(sink.discard)
        return sink

    def clear(self) -> None:
        """Have no files."""
        self._undo.close()
        self._sinks.clear()

    def close(self) -> dict[str, FileRecord]:
        """Bring all files onto the disk; says what each of them must look like."""
        return {path: sink.close() for path, sink in self._sinks.items()}

    def publish(self, sealed: ShardManifest) -> None:
        """Rename the files to their final names, the manifest last.

        The manifest is on disk before any file is renamed, so `recover_interrupted` knows what a
        crash left: it removes a new shard, and completes the replacement of a committed one.
        """
        sinks = list(self._sinks.values())
        last = self.sink(manifest_path(sealed.shard.id))
        last.write(encode_manifest(sealed))
        last.close()
        with disk_errors(last.path):
            if before := _read(last.path):
                self._undo.pop_all()
                _exchange(self._folder, sealed, before)
                return
            last.path.unlink(missing_ok=True)  # a damaged one
        for sink in (*sinks, last):
            sink.publish()


def open_writers(shelf: ShardWriter, shard: str, recipe: DatasetSpec) -> Iterator[FormatWriter]:
    """A writer for each form that the recipe asks for."""
    columns = arrow_schema(
        [*recipe.scores.values()],
        reencoded=ONE_EXTENSION in recipe.forms,
        layout=recipe.layout,
    )
    yield ParquetWriter(shelf.sink(part_path("metadata", shard)), columns)
    if has_images(recipe.forms):
        yield WebDatasetWriter(shelf.sink(part_path("images", shard)))
    if "embeddings" in recipe.forms:
        yield MatrixWriter(shelf.sink(part_path("img_emb", shard)), "image_embedding")
        yield MatrixWriter(shelf.sink(part_path("text_emb", shard)), "text_embedding")
    if "tfrecords" in recipe.forms:
        yield TFRecordWriter(shelf.sink(part_path("tfrecords", shard)))


def _testify(sink: HashedFile, optouts: Iterable[OptOut]) -> None:
    """Write the evidence of the owners' refusals, a line each."""
    for each in optouts:
        sink.write(canonical_json(dataclasses.asdict(each)) + b"\n")


def _sealed(
    account: PairStats,
    parcel: Parcel,
    *,
    recipe: DatasetSpec,
    tally: Tally,
    stored: Mapping[str, FileRecord],
) -> ShardManifest:
    return ShardManifest(
        shard=parcel.shard,
        rows=account.rows,
        files=stored,
        place=None,
        funnel=tally.as_dict(),
        kept=account.kept,
        dropped=account.dropped,
        similarity=account.sum / max(account.rows, 1),
        domains=account.most(),
        opinions=account.opinions,
        gallery=account.gallery.shown(),
        optouts=sum(each.obeyed for each in parcel.optouts),
        overruled=sum(not each.obeyed for each in parcel.optouts),
        started=parcel.started,
        scraped=parcel.finished,
        finished=time.time(),
        model=recipe.model,
        threshold=recipe.threshold,
        forms=recipe.forms,
        versions={**parcel.versions, **recipe.versions},
        silent=parcel.silent,
        cut=parcel.cut,
        settings=recipe.settings,
        scores=tuple(recipe.scores.values()),
    )
