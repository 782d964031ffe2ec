"""Remove pairs from a finished dataset by rewriting every file of their shards.

The result is what a run that never had those pairs would have written, so all files stay aligned.
A shard is replaced as a whole or not at all, and `recover_interrupted` completes a replacement that
was interrupted. Nothing here knows why a pair has to go.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.layout import further_model, part_path
from cahlib.dataset.manifest import (
    GalleryItem,
    ShardManifest,
    read_manifests,
    require_dataset,
)
from cahlib.dataset.read_pairs import DAMAGE, extras_of, read_pairs, read_table
from cahlib.dataset.storage.hashed_file import HashedFile
from cahlib.dataset.write.columns import COLUMNS, REENCODED_FROM, Row
from cahlib.dataset.write.formats import write_matrix
from cahlib.dataset.write.shard_writer import (
    DatasetSpec,
    PairStats,
    ShardWriter,
    recover_interrupted,
)

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


def copy_shard(
    folder: Path, manifest: ShardManifest, why: RemovalRule, target: Path
) -> ShardManifest:
    """Write the pairs of a shard for which there is no reason into another dataset's folder.

    The manifest there counts the others as dropped. Raise RunError if the shard is damaged.
    """
    with _damage(manifest):
        _, copied = _write_rest(folder, manifest, why, target)
    return copied


@contextmanager
def _damage(manifest: ShardManifest) -> Iterator[None]:
    """Turn the errors of reading a damaged shard into RunError."""
    try:
        yield
    except DAMAGE as error:
        raise RunError(
            f"shard {manifest.shard.id} cannot be read ({error}); see `cah verify`."
        ) from error


def _tried(folder: Path, manifest: ShardManifest, why: RemovalRule) -> ShardChange | None:
    links = {p: p.resolve() for name in manifest.files if (p := folder / name).is_symlink()}
    with _damage(manifest):
        lost, fresh = _write_rest(folder, manifest, why, folder)
    change = None
    if fresh is not manifest:
        change = ShardChange(shard=manifest.shard.id, lost=lost, left=fresh.rows)
    for path, old in links.items() if change else ():
        if not path.is_symlink():
            _log.warning("%s was a link; %s still has what was removed.", path, old)
    return change


def _write_rest(
    folder: Path, manifest: ShardManifest, why: RemovalRule, target: Path
) -> tuple[Counter[DropReason], ShardManifest]:
    """Write the pairs that stay, unless all of them do and the target is the folder itself.

    Return what was lost, and the new manifest or the same.
    """
    rows, schema, layout = read_table(folder, manifest)
    reasons = [why(row) for row in rows]
    lost = Counter(reason for reason in reasons if reason)
    gallery = tuple(
        shown for shown in manifest.gallery if not why({**asdict(shown), "URL": shown.url})
    )
    if target == folder and not lost and gallery == manifest.gallery:
        return lost, manifest
    extras = extras_of(manifest)
    added = [name for each in manifest.added for name in each.columns]
    others = {*COLUMNS, REENCODED_FROM, *added, *(name for _, name in extras)}
    spec = DatasetSpec(
        model=manifest.model,
        threshold=manifest.threshold,
        scores={n: n for n in schema.names if n not in others},
        forms=manifest.forms,
        versions=manifest.versions,
        settings=manifest.settings,
        layout=layout,
        extras=extras,
        added=tuple(schema.field(name) for name in added),
    )
    pair_stats = PairStats()
    with ShardWriter(target) as writer:
        writer.open_formats(manifest.shard.id, spec)
        for row, pair, reason in zip(
            rows, read_pairs(folder, manifest, rows), reasons, strict=True
        ):
            if reason is None:
                pair_stats.count(pair)
                writer.add(pair, row)
        writer.close_formats()
        if pair_stats.rows:
            _keep_vectors(folder, manifest, writer, [reason is None for reason in reasons])
        rest = _without(manifest, pair_stats, lost, gallery)
        if target != folder:
            for kept in rest.files:
                _copy(folder / kept, writer.open(kept))
        return lost, writer.commit(rest)


def _copy(path: Path, file: HashedFile) -> None:
    with path.open("rb") as source:
        while block := source.read(1 << 20):
            file.write(block)


def _keep_vectors(
    folder: Path, manifest: ShardManifest, writer: ShardWriter, kept: Sequence[bool]
) -> None:
    """Write the vectors of further models again, those of the kept pairs alone."""
    for path in filter(further_model, manifest.files):
        write_matrix(writer.open(path), np.load(folder / path)[np.array(kept)])


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
