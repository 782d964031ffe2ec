"""Takes pairs out of a finished dataset: every file of their shards is written anew without them.

What is left is what a run that never had those pairs would have written, so all files stay aligned.
A shard is replaced as a whole or not at all, and `recover_interrupted` completes a replacement that
was interrupted. Nothing here knows why a pair has to go.
"""

from __future__ import annotations

import logging
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.dataset.layout import CURRENT_LAYOUT, part_path
from cahlib.dataset.manifest import (
    GalleryItem,
    ShardManifest,
    read_manifests,
    require_dataset,
    tar_path,
)
from cahlib.dataset.write.columns import (
    COLUMNS,
    REENCODED_FROM,
    Row,
    columns_of_layout,
    restore_pair,
)
from cahlib.dataset.write.shard_writer import (
    DatasetSpec,
    PairStats,
    ShardWriter,
    open_writers,
    recover_interrupted,
)
from cahlib.dataset.write.tfrecord import read_tfrecords
from cahlib.errors import ConfigError, RunError
from cahlib.records import Judged, Reason, Stage

_log = logging.getLogger(__name__)

#: Says of a row of the metadata why its pair has to go, or None.
RemovalRule = Callable[[Row], Reason | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardChange:
    """What was taken out of a shard."""

    shard: str
    lost: Mapping[Reason, int]
    left: int  #: pairs


def rewrite_shards(folder: Path, why: RemovalRule) -> Iterator[ShardChange]:
    """Take the pairs for which there is a reason out of the dataset in a folder, shard by shard.

    Yields one Change a shard that had such pairs, when it is exchanged. Nobody else may write to
    the folder meanwhile (`lock.held`). Raises ConfigError at once if there is no dataset or its
    files are elsewhere, and RunError later if one is damaged.
    """
    recover_interrupted(folder)
    require_dataset(folder)
    every = list(read_manifests(folder))
    if away := next((sealed.place for sealed in every if sealed.place), None):
        raise ConfigError(f"{folder}: the files are at {away}; bring them here first.")
    return filter(None, (_tried(folder, sealed, why) for sealed in every))


def _tried(folder: Path, sealed: ShardManifest, why: RemovalRule) -> ShardChange | None:
    links = {p: p.resolve() for name in sealed.files if (p := folder / name).is_symlink()}
    try:
        change = _exchange(folder, sealed, why)
    except (tarfile.TarError, ValueError, KeyError, StopIteration, OSError) as error:
        raise RunError(
            f"shard {sealed.shard.id} cannot be read ({error}); `cah verify` tells more."
        ) from error
    for path, old in links.items() if change else ():
        if not path.is_symlink():
            _log.warning("%s was a link; %s still has what was taken out.", path, old)
    return change


def _exchange(folder: Path, sealed: ShardManifest, why: RemovalRule) -> ShardChange | None:
    path = folder / part_path("metadata", sealed.shard.id)
    table = pq.read_table(path) if sealed.rows else pa.table({})
    layout = CURRENT_LAYOUT if "chroma" in table.column_names else 1
    rows = [{**dict.fromkeys(columns_of_layout(layout)), **row} for row in table.to_pylist()]
    reasons = [why(row) for row in rows]
    lost = Counter(reason for reason in reasons if reason)
    gallery = tuple(
        shown for shown in sealed.gallery if not why({**asdict(shown), "URL": shown.url})
    )
    if not lost and gallery == sealed.gallery:
        return None
    recipe = DatasetSpec(
        model=sealed.model,
        threshold=sealed.threshold,
        scores={n: n for n in table.column_names if n not in (*COLUMNS, REENCODED_FROM)},
        forms=sealed.forms,
        versions=sealed.versions,
        settings=sealed.settings,
        layout=layout,
    )
    account = PairStats()
    with ExitStack() as undo:
        shelf = ShardWriter(folder, undo)
        writers = list(open_writers(shelf, sealed.shard.id, recipe))
        for row, pair, reason in zip(rows, _pairs(folder, sealed, rows), reasons, strict=True):
            if reason is None:
                account.count(pair)
                for writer in writers:
                    writer.add(pair, row)
        if account.rows:
            for writer in writers:
                writer.close()
        else:
            shelf.clear()
        shelf.publish(_without(sealed, account, lost, gallery, stored=shelf.close()))
    return ShardChange(shard=sealed.shard.id, lost=lost, left=account.rows)


def _without(
    sealed: ShardManifest,
    account: PairStats,
    lost: Mapping[Reason, int],
    gallery: tuple[GalleryItem, ...],
    *,
    stored: Any,
) -> ShardManifest:
    """The seal of a shard that lost some of its pairs."""
    tally = sealed.tally
    tally.left[Stage.JUDGE] -= sum(lost.values())
    tally.lost.update(lost)
    evidence = part_path("optouts", sealed.shard.id)
    kept = {evidence: sealed.files[evidence]} if evidence in sealed.files else {}
    return replace(
        sealed,
        rows=account.rows,
        files={**stored, **kept},
        funnel=tally.as_dict(),
        kept=account.kept,
        similarity=account.sum / max(account.rows, 1),
        domains=account.most(),
        opinions=account.opinions,
        gallery=gallery,
    )


def _pairs(folder: Path, sealed: ShardManifest, rows: Iterable[Row]) -> Iterator[Judged]:
    """The pairs of a shard as they were judged, from its files."""
    images, texts = (_vectors(folder, sealed, form) for form in ("img_emb", "text_emb"))
    for row, data, image, text in zip(rows, _data(folder, sealed), images, texts, strict=False):
        yield restore_pair(row, data=data, image_embedding=image, text_embedding=text)


def _vectors(folder: Path, sealed: ShardManifest, form: str) -> Iterable[Any]:
    path = folder / part_path(form, sealed.shard.id)
    return np.load(path, mmap_mode="r") if path.exists() else repeat(np.empty(0, np.float16))


def _data(folder: Path, sealed: ShardManifest) -> Iterator[bytes]:
    """The images of a shard, from whichever of its files holds them."""
    tar, tfrecord = tar_path(sealed), folder / part_path("tfrecords", sealed.shard.id)
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
