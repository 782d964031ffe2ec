"""Remove pairs from a finished dataset by rewriting every file of their shards.

The result is what a run that never had those pairs would have written, so all files stay aligned.
A shard is replaced as a whole or not at all, and `recover_interrupted` completes a replacement that
was interrupted. Nothing here knows why a pair has to go.
"""

from __future__ import annotations

import logging
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason, Judged, Stage
from cahlib.core.table_rows import ExtraColumn, parse_rows_url
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import (
    GalleryItem,
    ShardManifest,
    read_manifests,
    require_dataset,
    tar_path,
)
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.write.columns import (
    COLUMNS,
    REENCODED_FROM,
    Row,
    columns_of_layout,
    layout_by_columns,
    restore_pair,
)
from cahlib.dataset.write.shard_writer import (
    DatasetSpec,
    PairStats,
    ShardWriter,
    recover_interrupted,
)
from cahlib.dataset.write.tfrecord import read_tfrecords

_log = logging.getLogger(__name__)

#: Returns why the pair of a row of the metadata is to be removed, or None.
RemovalRule = Callable[[Row], DropReason | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardChange:
    """A shard that was rewritten, and the pairs removed from it."""

    shard: str
    lost: Mapping[DropReason, int]
    left: int  #: pairs that remain


def rewrite_shards(folder: Path, why: RemovalRule) -> Iterator[ShardChange]:
    """Remove the pairs for which there is a reason from the dataset in a folder, shard by shard.

    Yield a change per shard that had such pairs, once it is replaced. The caller holds the folder's
    lock (`lock.lock_dataset`). Raise ConfigError at once if there is no dataset or its files are
    elsewhere, and RunError later if one is damaged.
    """
    recover_interrupted(folder)
    require_dataset(folder)
    every = list(read_manifests(folder))
    if away := next((manifest.place for manifest in every if manifest.place), None):
        raise ConfigError(f"{folder}: the files are at {away}; download them first.")
    return filter(None, (_tried(folder, manifest, why) for manifest in every))


def _tried(folder: Path, manifest: ShardManifest, why: RemovalRule) -> ShardChange | None:
    links = {p: p.resolve() for name in manifest.files if (p := folder / name).is_symlink()}
    try:
        change = _exchange(folder, manifest, why)
    except (tarfile.TarError, ValueError, KeyError, StopIteration, OSError) as error:
        raise RunError(
            f"shard {manifest.shard.id} cannot be read ({error}); see `cah verify`."
        ) from error
    for path, old in links.items() if change else ():
        if not path.is_symlink():
            _log.warning("%s was a link; %s still has what was removed.", path, old)
    return change


def _exchange(folder: Path, manifest: ShardManifest, why: RemovalRule) -> ShardChange | None:
    path = folder / part_path("metadata", manifest.shard.id)
    table = read_metadata(path) if manifest.rows else pa.table({})
    layout = layout_by_columns(table.column_names)
    rows = [{**dict.fromkeys(columns_of_layout(layout)), **row} for row in table.to_pylist()]
    reasons = [why(row) for row in rows]
    lost = Counter(reason for reason in reasons if reason)
    gallery = tuple(
        shown for shown in manifest.gallery if not why({**asdict(shown), "URL": shown.url})
    )
    if not lost and gallery == manifest.gallery:
        return None
    extras = _extras(manifest)
    others = {*COLUMNS, REENCODED_FROM, *(name for _, name in extras)}
    spec = DatasetSpec(
        model=manifest.model,
        threshold=manifest.threshold,
        scores={n: n for n in table.column_names if n not in others},
        forms=manifest.forms,
        versions=manifest.versions,
        settings=manifest.settings,
        layout=layout,
        extras=extras,
    )
    pair_stats = PairStats()
    with ShardWriter(folder) as writer:
        writer.open_formats(manifest.shard.id, spec)
        for row, pair, reason in zip(rows, _pairs(folder, manifest, rows), reasons, strict=True):
            if reason is None:
                pair_stats.count(pair)
                writer.add(pair, row)
        writer.close_formats()
        writer.commit(_without(manifest, pair_stats, lost, gallery))
    return ShardChange(shard=manifest.shard.id, lost=lost, left=pair_stats.rows)


def _without(
    manifest: ShardManifest,
    pair_stats: PairStats,
    lost: Mapping[DropReason, int],
    gallery: tuple[GalleryItem, ...],
) -> ShardManifest:
    """Return the manifest of a shard that lost some of its pairs, without their files."""
    stats = manifest.stats
    stats.left[Stage.JUDGE] -= sum(lost.values())
    stats.dropped.update(lost)
    evidence = part_path("optouts", manifest.shard.id)
    kept = {evidence: manifest.files[evidence]} if evidence in manifest.files else {}
    return replace(
        manifest, files=kept, funnel=stats.as_dict(), gallery=gallery, **pair_stats.of_kept()
    )


def _pairs(folder: Path, manifest: ShardManifest, rows: Iterable[Row]) -> Iterator[Judged]:
    """Yield the pairs of a shard as they were scored, from its files."""
    images, texts = (_vectors(folder, manifest, form) for form in ("img_emb", "text_emb"))
    extras = _extras(manifest)
    for row, data, image, text in zip(rows, _data(folder, manifest), images, texts, strict=False):
        yield restore_pair(
            row, data=data, image_embedding=image, text_embedding=text, extras=extras
        )


def _extras(manifest: ShardManifest) -> tuple[ExtraColumn, ...]:
    rows = parse_rows_url(manifest.shard.url)
    return rows.extras if rows else ()


def _vectors(folder: Path, manifest: ShardManifest, form: str) -> Iterable[Any]:
    path = folder / part_path(form, manifest.shard.id)
    return np.load(path, mmap_mode="r") if path.exists() else repeat(np.empty(0, np.float16))


def _data(folder: Path, manifest: ShardManifest) -> Iterator[bytes]:
    """Yield the images of a shard, from whichever of its files has them."""
    tar, tfrecord = tar_path(manifest), folder / part_path("tfrecords", manifest.shard.id)
    if tar:
        with tarfile.open(folder / tar) as file:
            for member in file:
                if not member.name.endswith((".json", ".txt")):
                    yield cast(Any, file.extractfile(member)).read()
    elif tfrecord.exists():
        with tfrecord.open("rb") as stream:
            yield from (cast(bytes, each["image"]) for each in read_tfrecords(stream))
    else:
        yield from repeat(b"")
