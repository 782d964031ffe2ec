"""Write the pairs of a shard into the dataset, all or nothing.

    metadata/metadata_<shard>.parquet   one row per pair: LAION's columns first, then ours
    images/<shard>.tar                  WebDataset: <uid>.<format>, <uid>.json, <uid>.txt; numbered
                                        later (`cahlib.dataset.maintain.numbering`)
    img_emb/img_emb_<shard>.npy         float16, row by row as in the parquet
    text_emb/text_emb_<shard>.npy       the same for the texts
    tfrecords/<shard>.tfrecord          on request
    optouts/<shard>.jsonl               the evidence for each image whose owner opted out
    outcomes/<shard>.parquet            what became of each candidate, kept or not
    shards/<shard>.json                 the manifest, written last
    dataset.json                        the settings, and which shards are committed

Each shard has its own files: a committed shard is never touched again, and an interrupted one
leaves nothing. The folders of embeddings and metadata are named as clip-retrieval names its own, so
that it, autofaiss and embedding-reader read the dataset's folder as it is. They join npy and
parquet by the order of the sorted names, and skip an npy without rows but not its parquet: so a
shard without kept pairs has only its manifest, its evidence and its outcomes.

Nothing here knows where images come from, or how they are scored.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from cahlib.core.atomic import TEMPORARY_SUFFIX
from cahlib.core.errors import disk_errors
from cahlib.core.records import DropReason, Judged, OptOut, Outcome, Parcel, Stage, Stats
from cahlib.core.table_rows import ExtraColumn, parse_rows_url
from cahlib.dataset.layout import (
    CURRENT_LAYOUT,
    MANIFESTS,
    ONE_EXTENSION,
    dataset_folders,
    has_images,
    part_path,
)
from cahlib.dataset.manifest import (
    ShardManifest,
    decode_manifest,
    encode_manifest,
    host_name,
    manifest_path,
)
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.hashed_file import FileRecord, HashedFile, temporary_path
from cahlib.dataset.write.columns import (
    REENCODED_FROM,
    Row,
    arrow_schema,
    canonical_json,
    make_row,
)
from cahlib.dataset.write.formats import FormatWriter, MatrixWriter, ParquetWriter, WebDatasetWriter
from cahlib.dataset.write.gallery import Gallery
from cahlib.dataset.write.outcome_writer import Verdicts
from cahlib.dataset.write.reencode import reencode_as_jpeg
from cahlib.dataset.write.tfrecord import TFRecordWriter
from cahlib.image.perceptual_hash import with_looks
from cahlib.model.open_nsfw import OPEN_NSFW, nsfw_band

#: Reasons to drop a pair that the dataset has already.
_DUPLICATES = (DropReason.PAIR_SEEN, DropReason.SAME_IMAGE, DropReason.NEAR_DUPLICATE)

#: Hosts that a manifest lists.
_DOMAINS = 100


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """The properties that all shards of a dataset share."""

    model: str  #: the name of model and weights, as in the scores
    threshold: float
    scores: Mapping[str, str]  #: the columns of all scores that a pair may have
    forms: tuple[str, ...]  #: of "images" or "images:jpg", "embeddings", "tfrecords"
    versions: Mapping[str, str]  #: of the libraries that score
    settings: str = ""  #: the digest of the settings that make it
    layout: int = CURRENT_LAYOUT
    extras: tuple[ExtraColumn, ...] = ()  #: columns that a table's rows carry along
    added: tuple[pa.Field, ...] = ()  #: columns that the metadata alone have


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # an attempt of its own
class ScoredParcel:
    """A parcel whose images are being scored."""

    parcel: Parcel
    stats: Stats = dataclasses.field(default_factory=Stats)  #: of the scoring
    outcomes: Iterable[Outcome] = ()  #: of the parcel's candidates; without, none are written


def write_shard(
    folder: Path,
    judged: Iterable[Judged],
    scored: ScoredParcel,
    *,
    spec: DatasetSpec,
    again: Callable[[Judged], DropReason | None],
) -> ShardManifest:
    """Write and commit a parcel's scored images; one image at a time is in memory.

    A pair for which ``again`` returns a reason is moved in the stats from the kept to the dropped.
    Errors of ``judged`` propagate, and nothing is left on disk. Raise ConfigError if the folder
    cannot be written, RunError if the disk fails, ShardError for outcomes of other images.
    """
    parcel, stats = scored.parcel, scored.stats
    pair_stats, verdicts, rows = PairStats(), Verdicts(), parse_rows_url(parcel.shard.url)
    spec = dataclasses.replace(spec, extras=rows.extras if rows else ())
    with ShardWriter(folder) as writer:
        writer.open_formats(parcel.shard.id, spec)
        for each in _without_duplicates(judged, again):
            pair_stats.count(each)
            verdicts.note(each)
            if each.reason is None:
                writer.add(*_prepare(each, spec))
        # Not before the scoring has ended: it counts in the same stats, on another thread.
        stats.left[Stage.JUDGE] -= pair_stats.duplicates.total()
        stats.dropped.update(pair_stats.duplicates)
        writer.close_formats()
        if parcel.optouts:
            _write_evidence(writer.open(part_path("optouts", parcel.shard.id)), parcel.optouts)
        if has_rows := next(outcomes := iter(scored.outcomes), None):
            table = verdicts.parquet(chain([has_rows], outcomes), stats, spec.scores)
            writer.open(part_path("outcomes", parcel.shard.id)).write(table)
        return writer.commit(_manifest(pair_stats, parcel, spec=spec, stats=parcel.stats + stats))


def recover_interrupted(folder: Path) -> None:
    """Remove the files of an uncommitted shard, and complete the replacement of a committed one."""
    with disk_errors(folder):
        for path in sorted((folder / MANIFESTS).glob(f".*.json{TEMPORARY_SUFFIX}")):
            if fresh := _read(path):
                before = _read(folder / manifest_path(fresh.shard.id))
                if before is None:
                    for name in fresh.files:
                        (folder / name).unlink(missing_ok=True)
                elif _is_complete(folder, fresh, before):
                    _replace(folder, fresh, before)
        for each in dataset_folders(files_at(folder).folders()):
            for path in (folder / each).glob(f".*{TEMPORARY_SUFFIX}"):
                path.unlink()


def read_uids(place: str | Path, manifest: ShardManifest) -> list[str]:
    """Return the keys of a shard's pairs, in their order in every file."""
    return list(read_similarities(place, manifest))


def read_similarities(place: str | Path, manifest: ShardManifest) -> dict[str, float]:
    """Return the similarities of a shard's pairs by key, in their order in every file."""
    path = part_path("metadata", manifest.shard.id)
    if path not in manifest.files:
        return {}
    with files_at(manifest.place or place).open(path) as file:
        table = read_metadata(file, ["uid", "similarity"])
        return dict(zip(table["uid"].to_pylist(), table["similarity"].to_pylist(), strict=True))


class PairStats:
    """The statistics of a shard's pairs for its manifest."""

    def __init__(self) -> None:
        self.rows, self._similarity = 0, 0.0
        self.duplicates = Counter[DropReason]()  # pairs that the dataset has already
        self.kept, self.dropped = Counter[int](), Counter[int]()
        self._domains = Counter[str]()
        self._opinions: dict[str, Counter[str]] = {}  # by label, then by the second classifier
        self.gallery = Gallery()

    def count(self, judged: Judged) -> None:
        if judged.reason in _DUPLICATES:
            self.duplicates[judged.reason] += 1
        self.gallery.offer(judged)
        # 0.29 * 100 is 28.999…: without the nudge the bins' edges would be off by one.
        if judged.similarity is not None:
            bin = int((judged.similarity + 1) * 100 + 1e-6) - 100
            (self.kept if judged.reason is None else self.dropped)[bin] += 1
        if judged.reason is not None:
            return
        self.rows += 1
        self._similarity += judged.similarity or 0
        self._domains[host_name(judged.image.candidate.url)] += 1
        if (second := judged.scores.get(OPEN_NSFW)) is not None:
            self._opinions.setdefault(judged.nsfw, Counter())[nsfw_band(second)] += 1

    def of_kept(self) -> dict[str, Any]:
        """Return the manifest's fields on kept pairs."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "similarity": self._similarity / max(self.rows, 1),
            "domains": dict(self._domains.most_common(_DOMAINS)),
            "opinions": self._opinions,
        }


class ShardWriter:
    """The files of a shard: committed together, or removed when the ``with`` ends."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._undo = folder, ExitStack()
        self._files: dict[str, HashedFile] = {}
        self._formats: list[FormatWriter] = []
        self._is_empty = True

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def open(self, path: str) -> HashedFile:
        """Create a file, by its path in the dataset."""
        file = self._files[path] = HashedFile(self._folder / path)
        self._undo.callback(file.discard)
        return file

    def open_formats(self, shard: str, spec: DatasetSpec) -> None:
        """Create the files of all forms that a dataset has."""

        def open(form: str) -> HashedFile:
            return self.open(part_path(form, shard))

        reencoded = ONE_EXTENSION in spec.forms
        columns = arrow_schema(
            [*spec.scores.values()], extras=spec.extras, reencoded=reencoded, layout=spec.layout
        )
        columns = pa.schema([*columns, *spec.added])
        self._formats.append(ParquetWriter(open("metadata"), columns))
        if has_images(spec.forms):
            without = [each.name for each in spec.added]
            self._formats.append(WebDatasetWriter(open("images"), without=without))
        if "embeddings" in spec.forms:
            self._formats.append(MatrixWriter(open("img_emb"), "image_embedding"))
            self._formats.append(MatrixWriter(open("text_emb"), "text_embedding"))
        if "tfrecords" in spec.forms:
            self._formats.append(TFRecordWriter(open("tfrecords")))

    def add(self, pair: Judged, row: Row) -> None:
        """Append a pair to all forms."""
        self._is_empty = False
        for each in self._formats:
            each.add(pair, row)

    def close_formats(self) -> None:
        """Complete the files of all forms; without a pair, remove them."""
        if self._is_empty:
            self._undo.close()
            self._files.clear()
        else:
            for each in self._formats:
                each.close()

    def commit(
        self, manifest: ShardManifest, before: Callable[[ShardManifest], None] = lambda _: None
    ) -> ShardManifest:
        """Add the open files to those that the manifest has, and commit the shard.

        ``before`` is called with the manifest once all other files are on disk.
        The manifest is on disk before any file is renamed, so `recover_interrupted` knows what a
        crash left: it removes a new shard, and completes the replacement of a committed one.
        """
        files = {path: file.close() for path, file in self._files.items()}
        manifest = dataclasses.replace(manifest, files={**files, **manifest.files})
        before(manifest)
        new = list(self._files.values())
        last = self.open(manifest_path(manifest.shard.id))
        last.write(encode_manifest(manifest))
        last.close()
        with disk_errors(last.path):
            replaced = _read(last.path)
            if replaced is None:
                last.path.unlink(missing_ok=True)  # a damaged one
        if replaced is None:
            for file in (*new, last):
                file.publish()
            self._undo.pop_all()
        else:
            self._undo.pop_all()
            with disk_errors(last.path):
                _replace(self._folder, manifest, replaced)
        return manifest


def _prepare(judged: Judged, spec: DatasetSpec) -> tuple[Judged, Row]:
    """Return a pair as the forms store it, and its row."""
    pair = judged
    if ONE_EXTENSION in spec.forms:
        pair = dataclasses.replace(judged, image=reencode_as_jpeg(judged.image))
    row = make_row(
        pair, model=spec.model, scores=spec.scores, extras=spec.extras, layout=spec.layout
    )
    if ONE_EXTENSION in spec.forms:
        row[REENCODED_FROM] = "" if pair.image is judged.image else judged.image.format
    return pair, row


def _read(path: Path) -> ShardManifest | None:
    """Return a manifest on this machine, or None if it is missing or damaged."""
    try:
        return decode_manifest(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _is_complete(folder: Path, fresh: ShardManifest, before: ShardManifest) -> bool:
    """Return whether all files of a replacement are there, by their sizes.

    A copy that was made during a change and brought up to date later still has that change's
    manifest, and none of its files.
    """

    def has(name: str, stored: FileRecord) -> bool:
        path = folder / name
        is_there = path.exists() and path.stat().st_size == stored.size
        return is_there or temporary_path(path).exists()

    kept = {*before.files.values()}
    return all(stored in kept or has(name, stored) for name, stored in fresh.files.items())


def _replace(folder: Path, fresh: ShardManifest, before: ShardManifest) -> None:
    """Rename the files of a committed shard's replacement; may be repeated after a crash."""
    old = {stored: name for name, stored in before.files.items() if name not in fresh.files}
    for name, stored in fresh.files.items():
        made, moved = temporary_path(folder / name), folder / old.get(stored, name)
        if made.exists():  # unchanged files have none
            made.replace(folder / name)
        elif name not in before.files and moved.exists():  # only its name changes
            moved.replace(folder / name)
    for name in before.files.keys() - fresh.files.keys():
        (folder / name).unlink(missing_ok=True)
    last = folder / manifest_path(fresh.shard.id)
    temporary_path(last).replace(last)


def _without_duplicates(
    judged: Iterable[Judged], again: Callable[[Judged], DropReason | None]
) -> Iterator[Judged]:
    """Yield the images with their looks, those that the dataset has with a reason to drop them."""
    own: set[str] = set()
    for each in judged:
        if each.reason is None:
            uid = each.image.candidate.uid
            each = dataclasses.replace(each, image=with_looks(each.image))
            reason = DropReason.PAIR_SEEN if uid in own else again(each)
            each = dataclasses.replace(each, reason=reason)
            own.add(uid)
        yield each


def _write_evidence(file: HashedFile, optouts: Iterable[OptOut]) -> None:
    for each in optouts:
        file.write(canonical_json(dataclasses.asdict(each)) + b"\n")


def _manifest(
    pair_stats: PairStats, parcel: Parcel, *, spec: DatasetSpec, stats: Stats
) -> ShardManifest:
    return ShardManifest(
        shard=parcel.shard,
        files={},
        place=None,
        funnel=stats.as_dict(),
        dropped=pair_stats.dropped,
        gallery=pair_stats.gallery.shown(),
        optouts=sum(each.obeyed for each in parcel.optouts),
        overruled=sum(not each.obeyed for each in parcel.optouts),
        started=parcel.started,
        scraped=parcel.finished,
        finished=time.time(),
        model=spec.model,
        threshold=spec.threshold,
        forms=spec.forms,
        versions={**parcel.versions, **spec.versions},
        silent=parcel.silent,
        cut=parcel.cut,
        settings=spec.settings,
        scores=tuple(spec.scores.values()),
        layout=spec.layout,
        **pair_stats.of_kept(),
    )
