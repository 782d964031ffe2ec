"""Further models of a run: each scores the pairs that are kept so far, in the same pass.

A model of `--cascade` drops what it finds less similar than its threshold, so that a costly one
sees only what a cheap one left; a model of `--also` only scores. What a pair is given does not
depend on which others are scored with it: a cascade keeps what scoring everything by all of its
models and choosing by all thresholds would keep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cahlib.core.config import Judge
from cahlib.core.errors import ConfigError
from cahlib.core.judge_settings import split_threshold
from cahlib.core.records import DropReason, Image, Judged, Stage, Stats
from cahlib.model.model_source import find_source, named_judge, require_known_model
from cahlib.model.pairs import embed_pairs
from cahlib.model.score_names import similarity_column

if TYPE_CHECKING:
    from cahlib.model.clip import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherModel:
    """A loaded model that scores what is kept so far."""

    clip: Clip
    threshold: float | None  #: least similarity to keep; None if it only scores

    @property
    def column(self) -> str:
        """The name of its score, which is its column."""
        return similarity_column(self.clip.name)

    def scored(self, judged: Iterable[Judged], batch: int, stats: Stats) -> Iterator[Judged]:
        """Yield scored images in order, the kept ones with one more score, or dropped.

        ``stats`` is that of the scoring; what is dropped is moved in it.
        """
        waiting = deque[Judged]()  # in order, up to those whose batch is being embedded

        def kept() -> Iterator[Image]:
            for each in judged:
                waiting.append(each)
                if each.reason is None:
                    yield each.image

        for images, (of_images, of_texts) in embed_pairs(kept(), self.clip, batch, Stats()):
            similarities = (of_images * of_texts).sum(axis=1).tolist()
            for (image, _), similarity in zip(images, similarities, strict=True):
                while (first := waiting.popleft()).image is not image:
                    yield self._unread(first, stats)
                yield self._with_score(first, similarity, stats)
        while waiting:
            yield self._unread(waiting.popleft(), stats)

    def _with_score(self, judged: Judged, similarity: float, stats: Stats) -> Judged:
        scores = {**judged.scores, self.column: similarity}
        judged = replace(judged, scores=scores)
        if self.threshold is None or similarity >= self.threshold:
            return judged
        return _dropped(judged, DropReason.DISSIMILAR, stats)

    def _unread(self, judged: Judged, stats: Stats) -> Judged:
        """Return an image that this model was not given, or could not read."""
        if judged.reason is not None or self.threshold is None:
            return judged
        return _dropped(judged, DropReason.UNREADABLE, stats)


def check_further(judge: Judge) -> None:
    """Raise ConfigError for a further model that does not exist, or is named twice."""
    taken = {find_source(judge).name}
    for setting, each, _ in _further(judge):
        source = find_source(each)
        require_known_model(source, setting)
        if source.name in taken:
            raise ConfigError(f"{setting}: {source.name} scores already; name each model once.")
        taken.add(source.name)


def load_further(judge: Judge) -> tuple[FurtherModel, ...]:
    """Load the further models of a run: those of the cascade first, in the order given."""
    from cahlib.model.clip import load_clip

    return tuple(
        FurtherModel(clip=load_clip(each), threshold=threshold)
        for _, each, threshold in _further(judge)
    )


def _further(judge: Judge) -> Iterator[tuple[str, Judge, float | None]]:
    """Yield the setting that names each further model, its settings, and its threshold."""
    for text in judge.cascade:
        name, threshold = split_threshold(text)
        yield "cascade", _named("cascade", name, judge), threshold
    for name in judge.also:
        yield "also", _named("also", name, judge), None


def _named(setting: str, name: str, judge: Judge) -> Judge:
    """Return the settings of a further model, which runs where the first one does."""
    return replace(named_judge(setting, name), device=judge.device, batch=judge.batch)


def _dropped(judged: Judged, reason: DropReason, stats: Stats) -> Judged:
    stats.left[Stage.JUDGE] -= 1
    stats.dropped[reason] += 1
    return replace(judged, reason=reason)
