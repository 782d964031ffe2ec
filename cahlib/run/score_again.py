"""Score the pairs of a finished dataset by one more model, shard by shard.

    shards ─► opened ─► embedded ─► added
              disk      model       disk

The images are prepared and embedded as a run does it. A shard that has its scores is not read
again, so that what was interrupted is continued by the same call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from cahlib.core.config import Judge
from cahlib.core.errors import ConfigError
from cahlib.core.fingerprint import settings_digest
from cahlib.core.prefetch import Pipeline
from cahlib.core.presets import PRESETS
from cahlib.core.records import Image, Stats
from cahlib.dataset.description import find_description
from cahlib.dataset.layout import part_path
from cahlib.dataset.maintain.add_scores import (
    DamagedShard,
    add_scores,
    changing_scores,
    damage_of,
    require_free_columns,
    require_whole,
    shards_here,
    unless_damaged,
)
from cahlib.dataset.manifest import AddedScores, ShardManifest
from cahlib.dataset.read_pairs import pictures_path, read_pairs, read_table
from cahlib.dataset.vectors import path_by_model
from cahlib.dataset.write.columns import Row
from cahlib.model.model_source import find_source, model_digest, model_settings
from cahlib.model.pairs import embed_pairs
from cahlib.model.score_names import similarity_column
from cahlib.model.scorer import check_model_files

if TYPE_CHECKING:
    from cahlib.model.clip import Clip

_FORMS = ("img_emb", "text_emb")

#: A shard with its rows, or why it cannot be read.
_Opened: TypeAlias = tuple[ShardManifest, list[Row] | DamagedShard]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredShard:
    """A shard that was scored again."""

    shard: str
    pairs: int  #: scored
    unreadable: int  #: pairs whose image the model could not read: they have no score
    columns: tuple[str, ...]  #: that were added
    mean: float | None  #: of the scores, if they are one number each


def score_dataset(folder: Path, judge: Judge, *, embeddings: bool = False) -> Iterator[ScoredShard]:
    """Add the similarity by a model to the dataset in a folder, and its vectors if asked for.

    Yield each shard once it has them; those that have them already are left out. Damaged shards are
    left as they are, and the RunError about them is raised at the end. Raise ConfigError if there
    is no dataset with images, it is in use, or has scores of another model of this name.
    """
    with changing_scores(folder) as damaged:
        check_model_files(judge)
        scoring = _Scoring(folder, judge, embeddings=embeddings)
        shards = shards_here(folder)
        for each in shards:  # those of merged folders may have been judged by different models
            require_free_columns([each], [scoring.added(each)])
        if not (waiting := [each for each in shards if scoring.is_open(each)]):
            return
        from cahlib.model.clip import load_clip

        clip = load_clip(judge)
        with Pipeline() as ahead:
            opened = ahead.prefetch(scoring.opened(waiting), 1)
            yield from unless_damaged(opened, lambda each: scoring.score(*each, clip), damaged)


class _Scoring:
    """One model that scores a dataset again."""

    def __init__(self, folder: Path, judge: Judge, *, embeddings: bool) -> None:
        self._folder, self._embeddings, self._batch = folder, embeddings, judge.batch
        self._model = find_source(judge).name
        self._digest = model_digest(*judge.chosen()[:2])
        self._column = similarity_column(self._model)
        self._own = judging_digest(folder)

    def is_open(self, manifest: ShardManifest) -> bool:
        """Return whether a shard lacks scores or vectors; raise ConfigError if it has no images."""
        has_scores, added = self._has_scores(manifest), self.added(manifest)
        digests = {each.digest for each in manifest.added if each.columns == (self._column,)}
        digests |= {self._own} if manifest.model == self._model else set()
        if digests - {"", self._digest}:
            raise ConfigError(
                f"{self._folder} has scores by another model called {self._model}; give this one "
                "another name."
            )
        paths = self._paths(manifest) if self._embeddings else ()
        if (has_scores or added in manifest.added) and manifest.files.keys() >= {*paths}:
            return False
        if pictures_path(manifest) is None:
            raise ConfigError(
                f"{self._folder}: shard {manifest.shard.id} has no images to score; they are kept "
                "with --forms images."
            )
        return True

    def opened(self, shards: Iterable[ShardManifest]) -> Iterator[_Opened]:
        """Check the files of each shard and read its rows, while the one before it is scored."""
        for manifest in shards:
            try:
                with damage_of(manifest):
                    table = part_path("metadata", manifest.shard.id)
                    require_whole(self._folder, manifest, table, pictures_path(manifest) or "")
                    rows = read_table(self._folder, manifest).rows
            except DamagedShard as error:
                yield manifest, error
            else:
                yield manifest, rows

    def score(
        self, manifest: ShardManifest, rows: list[Row] | DamagedShard, clip: Clip
    ) -> ScoredShard:
        """Score a shard, and commit its scores."""
        if isinstance(rows, DamagedShard):
            raise rows
        at = {row["uid"]: number for number, row in enumerate(rows)}
        similarity = np.full(len(rows), np.nan, np.float32)
        vectors = np.zeros((2, len(rows) * self._embeddings, clip.dim), np.float16)
        images = self._images(manifest, rows)
        for batch, both in embed_pairs(images, clip, self._batch, Stats()):
            places = [at[image.candidate.uid] for image, _ in batch]
            similarity[places] = (both[0] * both[1]).sum(axis=1)
            if self._embeddings:
                vectors[:, places] = np.stack(both)
        added, missing = self.added(manifest), np.isnan(similarity)
        columns = {name: pa.array(similarity, mask=missing) for name in added.columns}
        matrices = zip(self._paths(manifest), vectors, strict=True) if self._embeddings else ()
        add_scores(self._folder, manifest, [added], columns, dict(matrices))
        scored = similarity[~missing]
        return ScoredShard(
            shard=manifest.shard.id,
            pairs=len(scored),
            unreadable=int(missing.sum()),
            columns=added.columns,
            mean=float(scored.mean()) if len(scored) else None,
        )

    def _images(self, manifest: ShardManifest, rows: list[Row]) -> Iterator[Image]:
        pairs = read_pairs(self._folder, manifest, rows)
        while True:
            with damage_of(manifest):
                pair = next(pairs, None)
            if pair is None:
                return
            yield pair.image

    def added(self, manifest: ShardManifest) -> AddedScores:
        """Return what a shard is given; a similarity that its run gave it stays."""
        columns = () if self._has_scores(manifest) else (self._column,)
        return AddedScores(model=self._model, columns=columns, digest=self._digest)

    def _has_scores(self, manifest: ShardManifest) -> bool:
        """Return whether the run itself scored a shard by this model."""
        return manifest.model == self._model or self._column in manifest.scores

    def _paths(self, manifest: ShardManifest) -> tuple[str, ...]:
        """Return where the shard's vectors by this model are, or shall be."""
        return tuple(path_by_model(manifest, self._model, form) for form in _FORMS)


def judging_digest(folder: Path) -> str:
    """Return what identifies the model that judged a dataset; "" if that is not known."""
    said = find_description(folder)
    if not said or not said.settings:
        return ""
    names = ("model", "pretrained")
    given = {name: said.settings.get(name) or "" for name in names}
    preset = PRESETS.get(str(said.settings.get("preset")))
    if not given["model"] and preset:
        given = {"model": preset.model, "pretrained": preset.pretrained}
    return settings_digest(model_settings(), given) if given["model"] else ""
