"""Score the pairs of a finished dataset by the vectors that it has, without reading an image.

Prompts give each image a label and shares (`cahlib.model.prompts`), a head gives it a number
(`cahlib.model.heads`). Each shard gets its new columns at once, as `cahlib.run.score_again` adds
those of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cahlib.core.config import Judge, settings
from cahlib.core.errors import ConfigError, MissingSetting
from cahlib.core.fingerprint import json_checksum, portable_value, settings_digest
from cahlib.core.presets import PRESETS
from cahlib.dataset.description import find_description, stored_job
from cahlib.dataset.layout import part_path, vectors_path
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
from cahlib.dataset.manifest import AddedScores, ShardManifest, require_dataset
from cahlib.dataset.vectors import path_by_model
from cahlib.model.heads import describe_head, load_heads
from cahlib.model.model_source import find_source, model_digest
from cahlib.model.prompts import embed_prompts, prompt_columns, read_prompts
from cahlib.model.score_names import score_columns, similarity_column
from cahlib.model.scorer import check_model_files
from cahlib.run.score_again import ScoredShard, judging_digest

#: Vectors of images, float32 or as stored: (images, width).
_Vectors: TypeAlias = NDArray[Any]
#: Returns new columns for vectors.
_Score: TypeAlias = Callable[[_Vectors], Mapping[str, NDArray[Any]]]


def score_by_prompts(folder: Path, path: str, judge: Judge) -> Iterator[ScoredShard]:
    """Add the labels and shares by a file of prompts to the dataset in a folder.

    The model is that of the dataset's own vectors, or a further one that it has vectors of. Yield
    and raise as `cahlib.run.score_again.score_dataset` does, and ConfigError for a bad file.
    """
    sets = read_prompts(path)
    with changing_scores(folder) as damaged:
        check_model_files(judge)
        model, digest = find_source(judge).name, model_digest(*judge.chosen()[:2])
        added = [
            AddedScores(
                model=model,
                columns=prompt_columns(name, labels),
                digest=json_checksum({"model": digest, "labels": labels}),
            )
            for name, labels in sets.items()
        ]
        waiting = _Waiting.find(folder, model, added, digest)
        if not waiting.shards:
            return
        from cahlib.model.clip import load_clip

        clip = load_clip(judge)
        embedded = {name: embed_prompts(labels, clip) for name, labels in sets.items()}

        def score(vectors: _Vectors) -> Mapping[str, NDArray[Any]]:
            found = dict[str, NDArray[Any]]()
            for name, prompts in embedded.items():
                found |= prompts.scores(vectors, prompt_columns(name, sets[name]))
            return found

        yield from waiting.scored(score, damaged)


def score_by_head(folder: Path, path: str) -> Iterator[ScoredShard]:
    """Add the score of a head to the dataset in a folder; nothing is dropped by it.

    The head names the model whose vectors it scores. Yield and raise as `score_by_prompts` does.
    """
    name, model = describe_head(path)
    setting = next(each for each in settings() if each.name == "heads")
    digest = settings_digest([setting], {"heads": portable_value(setting, (path,))})
    (column,) = score_columns(model, [name], layout=2).values()
    added = [AddedScores(model=model, columns=(column,), digest=digest)]
    with changing_scores(folder) as damaged:
        waiting = _Waiting.find(folder, model, added)
        if not waiting.shards:
            return
        (head,) = load_heads((path,), _Backbone(name=model, dim=waiting.width()))
        yield from waiting.scored(lambda vectors: {column: head.scores(vectors)}, damaged)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backbone:
    """A model of which only the vectors are there."""

    name: str
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """The shards that lack some scores, with the files of the vectors that give them."""

    folder: Path
    shards: Sequence[tuple[ShardManifest, str]]
    added: Sequence[AddedScores]

    @classmethod
    def find(
        cls, folder: Path, model: str, added: Sequence[AddedScores], digest: str = ""
    ) -> _Waiting:
        """Return the shards without these scores by a model, of this digest if that is known.

        The caller holds the folder's lock. Raise ConfigError if one has no vectors of the model, or
        has other columns of the same names.
        """
        every, own = shards_here(folder), judging_digest(folder)
        require_free_columns(every, added)
        found = []
        for manifest in every:
            if not {*added} <= {*manifest.added}:
                path, made_by = _made_by(manifest, model, own)
                if path not in manifest.files:
                    raise ConfigError(
                        f"{folder}: shard {manifest.shard.id} has no vectors by {model}; `cah "
                        "score` with that model and --embeddings makes them."
                    )
                if digest and made_by - {"", digest}:
                    raise ConfigError(
                        f"{folder} has vectors by another model called {model}; name that one."
                    )
                found.append((manifest, path))
        return cls(folder=folder, shards=found, added=added)

    def width(self) -> int:
        """Return the width of the vectors; raise RunError if the first file is damaged."""
        manifest, path = self.shards[0]
        require_whole(self.folder, manifest, path)
        return int(np.load(self.folder / path, mmap_mode="r").shape[1])

    def scored(self, score: _Score, damaged: list[DamagedShard]) -> Iterator[ScoredShard]:
        """Score each shard, and commit its scores; add the errors of damaged ones to a list."""
        return unless_damaged(self.shards, lambda shard: self._scored(*shard, score), damaged)

    def _scored(self, manifest: ShardManifest, path: str, score: _Score) -> ScoredShard:
        id = manifest.shard.id
        with damage_of(manifest):
            require_whole(self.folder, manifest, part_path("metadata", id), path)
            vectors = np.load(self.folder / path)
        missing = ~vectors.any(axis=1)  # of images that the model could not read
        found = score(vectors)
        columns = {name: pa.array(values, mask=missing) for name, values in found.items()}
        add_scores(self.folder, manifest, self.added, columns)
        every = [each[~missing] for each in found.values() if each.dtype.kind == "f"]
        only = every[0] if len(every) == 1 else np.empty(0)
        return ScoredShard(
            shard=id,
            pairs=int((~missing).sum()),
            unreadable=int(missing.sum()),
            mean=float(only.mean()) if len(only) else None,
            columns=tuple(found),
        )


def _made_by(manifest: ShardManifest, model: str, judging: str) -> tuple[str, set[str]]:
    """Return the file of a shard's image vectors by a model, and what identifies that model."""
    path = path_by_model(manifest, model)
    if path == vectors_path("img_emb", manifest.shard.id):
        return path, {judging}
    similarity = similarity_column(model)
    by_model = (each for each in manifest.added if each.model == model)
    return path, {each.digest for each in by_model if each.columns in ((), (similarity,))}


def dataset_judge(folder: Path) -> Judge:
    """Return the settings of the model that judged a dataset; raise MissingSetting if unknown."""
    require_dataset(folder)
    job, said = stored_job(folder), find_description(folder)
    if job and not job.judge.no_judge:
        return job.judge
    values = (said and said.settings) or {}
    if not values.get("model") and values.get("preset") in PRESETS and not values.get("no_judge"):
        return Judge(preset=values["preset"])
    raise MissingSetting("score: name the model of the dataset's vectors with --preset or --model.")
