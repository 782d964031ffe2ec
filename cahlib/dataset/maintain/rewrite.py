"""Remove pairs from a finished dataset by rewriting every file of their shards.

The result is what a run that never had those pairs would have written, so all files stay aligned;
the outcomes tell why they went. A shard is replaced as a whole or not at all, and
`recover_interrupted` completes a replacement that was interrupted. Nothing here knows why a pair
has to go.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import DropReason, Stage
from cahlib.dataset.layout import further_model, part_path
from cahlib.dataset.maintain.verify_shard import check_file
from cahlib.dataset.manifest import (
    GalleryItem,
    ShardManifest,
    encode_manifest,
    has_outcomes,
    read_manifests,
    require_dataset,
)
from cahlib.dataset.outcomes import KEPT, read_outcomes
from cahlib.dataset.read_pairs import DAMAGE, extras_of, read_pairs, read_table
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.hashed_file import HashedFile
from cahlib.dataset.write.columns import COLUMNS, REENCODED_FROM, Row
from cahlib.dataset.write.formats import write_matrix
from cahlib.dataset.write.outcome_writer import rewritten_outcomes
from cahlib.dataset.write.shard_writer import (
    DatasetSpec,
    PairStats,
    ShardWriter,
    recover_interrupted,
)

_log = logging.getLogger(__name__)

#: Returns why the pair of a row of the metadata is to be removed, or None; or why the link of a row
#: of the outcomes is.
RemovalRule = Callable[[Row], DropReason | None]

#: The columns of the outcomes that a rule for them may use.
_LINK_COLUMNS = ("position", "reason", "uid", "url", "final_url")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardChange:
    """A shard that was rewritten, and the pairs removed from it."""

    shard: str
    lost: Mapping[DropReason, int]
    left: int  #: pairs that remain
    links: int = 0  #: links removed from the outcomes that were no pairs
    manifest: str = ""  #: sha256 of the manifest that the shard has then


def rewrite_shards(
    folder: Path,
    why: RemovalRule,
    why_outcome: RemovalRule | None = None,
    note: Callable[[ShardChange], None] = lambda _: None,
) -> Iterator[ShardChange]:
    """Remove the pairs for which there is a reason from the dataset in a folder, shard by shard.

    ``why_outcome`` does the same for rows of the outcomes: it may remove further pairs, and the
    links of candidates that did not become pairs. Yield a change per shard that had any, once it is
    replaced. ``note`` is called with it just before, and again for the same change if a kill comes
    between. The caller holds the folder's lock (`lock.lock_dataset`). Raise ConfigError at once if
    there is no dataset or its files are elsewhere, and RunError later if one is damaged.
    """
    recover_interrupted(folder)
    require_dataset(folder)
    every = list(read_manifests(folder))
    if away := next((manifest.place for manifest in every if manifest.place), None):
        raise ConfigError(f"{folder}: the files are at {away}; download them first.")
    return filter(None, (_tried(folder, manifest, (why, why_outcome), note) for manifest in every))


def copy_shard(
    folder: Path, manifest: ShardManifest, why: RemovalRule, target: Path
) -> ShardManifest:
    """Write the pairs of a shard for which there is no reason into another dataset's folder.

    The manifest there counts the others as dropped. Raise RunError if the shard is damaged.
    """
    with _damage(manifest):
        return _write_rest(folder, manifest, (why, None), target).manifest


@contextmanager
def _damage(manifest: ShardManifest) -> Iterator[None]:
    """Turn the errors of reading a damaged shard into RunError."""
    try:
        yield
    except DAMAGE as error:
        raise RunError(
            f"shard {manifest.shard.id} cannot be read ({error}); see `cah verify`."
        ) from error


def _tried(
    folder: Path,
    manifest: ShardManifest,
    rules: tuple[RemovalRule, RemovalRule | None],
    note: Callable[[ShardChange], None],
) -> ShardChange | None:
    links = {p: p.resolve() for name in manifest.files if (p := folder / name).is_symlink()}
    with _damage(manifest):
        _, change = _write_rest(folder, manifest, rules, folder, note)
    if change is None:
        return None
    for path, old in links.items():
        if not path.is_symlink():
            _log.warning("%s was a link; its target %s still has the removed pairs.", path, old)
    return change


class _Rest(NamedTuple):
    """The rows of a shard that stay."""

    manifest: ShardManifest
    change: ShardChange | None


def _write_rest(
    folder: Path,
    manifest: ShardManifest,
    rules: tuple[RemovalRule, RemovalRule | None],
    target: Path,
    note: Callable[[ShardChange], None] = lambda _: None,
) -> _Rest:
    """Write the pairs that stay, unless all of them do and the target is the folder itself."""
    why, why_outcome = rules
    rows, schema, layout = read_table(folder, manifest)
    listed = _listed(folder, manifest, why_outcome)
    reasons = [why(row) or listed.kept.get(row["uid"]) for row in rows]
    removed = {row["uid"]: each for row, each in zip(rows, reasons, strict=True) if each}
    lost = Counter(removed.values())
    gallery = tuple(
        shown for shown in manifest.gallery if not why({**asdict(shown), "URL": shown.url})
    )
    copied = target != folder
    if not (copied or lost or listed.others) and gallery == manifest.gallery:
        return _Rest(manifest, None)

    def changed(fresh: ShardManifest) -> ShardChange:
        digest = hashlib.sha256(encode_manifest(fresh)).hexdigest()
        return ShardChange(
            shard=fresh.shard.id, lost=lost, left=fresh.rows, links=len(listed.others),
            manifest=digest,
        )  # fmt: skip

    outcomes = part_path("outcomes", manifest.shard.id)
    _require_sound(folder, manifest, {*manifest.files} if copied or lost else {outcomes})
    pair_stats = PairStats()
    with ShardWriter(target) as writer:
        if copied or lost:
            writer.open_formats(manifest.shard.id, _spec(manifest, schema, layout))
            pairs = read_pairs(folder, manifest, rows)
            for row, pair, reason in zip(rows, pairs, reasons, strict=True):
                if reason is None:
                    pair_stats.count(pair)
                    writer.add(pair, row)
            writer.close_formats()
            if pair_stats.rows:
                _keep_vectors(folder, manifest, writer, [reason is None for reason in reasons])
            rest = _without(manifest, pair_stats, lost, gallery)
        else:
            rest = replace(manifest, gallery=gallery)
        if has_outcomes(manifest):
            data = rewritten_outcomes(folder, manifest, removed, listed.others)
            writer.open(outcomes).write(data)
            rest = replace(rest, files={k: v for k, v in rest.files.items() if k != outcomes})
        for kept in rest.files if copied else ():
            _copy(folder / kept, writer.open(kept))
        fresh = writer.commit(rest, lambda fresh: note(changed(fresh)))
        return _Rest(fresh, changed(fresh))


def _spec(manifest: ShardManifest, schema: pa.Schema, layout: int) -> DatasetSpec:
    extras = extras_of(manifest)
    added = [name for each in manifest.added for name in each.columns]
    others = {*COLUMNS, REENCODED_FROM, *added, *(name for _, name in extras)}
    return DatasetSpec(
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


class _Listed(NamedTuple):
    """The outcomes of a shard that a rule lists."""

    kept: Mapping[str, DropReason]  #: reasons to remove pairs, by uid
    others: Set[int]  #: positions of candidates that lose their links


def _listed(folder: Path, manifest: ShardManifest, why: RemovalRule | None) -> _Listed:
    kept, others = dict[str, DropReason](), set[int]()
    for batch in read_outcomes(folder, manifest, _LINK_COLUMNS) if why else ():
        for row in batch.to_pylist():
            if why and row["uid"] and (reason := why(row)):
                if row["reason"] == KEPT:
                    kept[row["uid"]] = reason
                else:
                    others.add(row["position"])
    return _Listed(kept, others)


def _require_sound(folder: Path, manifest: ShardManifest, paths: Iterable[str]) -> None:
    """Raise ValueError if a file is not as it was written: its copy would get a new checksum."""
    there = files_at(folder)
    for path in sorted(manifest.files.keys() & paths):
        stored = manifest.files[path]
        for sentence in check_file(there, path, stored=stored, reader=lambda *_: iter(())):
            raise ValueError(sentence.rstrip("."))


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
