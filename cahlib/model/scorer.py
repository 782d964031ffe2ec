"""Everything that scores the pairs of a run: CLIP, the safety rules and the heads.

Nothing here imports torch before a model is loaded, so that other commands start without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cahlib.core.config import NO_MODEL, Judge
from cahlib.core.records import Image, Judged, Stage, Stats
from cahlib.model.further import FurtherModel, check_further, load_further
from cahlib.model.heads import Head, check_heads, load_heads
from cahlib.model.model_source import find_source, require_known_model
from cahlib.model.open_nsfw import OPEN_NSFW, OpenNsfw, require_open_nsfw
from cahlib.model.pairs import score_names, score_pairs
from cahlib.model.safety import Safety, read_safety_rules
from cahlib.model.score_names import score_columns

if TYPE_CHECKING:
    from cahlib.model.clip import Clip


class Scorer(Protocol):
    """The judge of a run's images."""

    @property
    def name(self) -> str:
        """The name of the model and its weights."""

    def judged(self, images: Iterable[Image], judge: Judge, stats: Stats) -> Iterator[Judged]:
        """Yield the images with their scores."""

    def worked(self) -> float:
        """Return the seconds that it has worked."""

    def scores(self) -> tuple[str, ...]:
        """Return the names of the scores that a pair may have."""

    def columns(self, *, layout: int) -> dict[str, str]:
        """Return the column of each score that a pair may have, by the layout of the dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScorer:
    """The loaded models of a run."""

    clip: Clip
    safety: Safety
    heads: tuple[Head, ...]
    open_nsfw: OpenNsfw | None = None
    further: tuple[FurtherModel, ...] = ()

    def judged(self, images: Iterable[Image], judge: Judge, stats: Stats) -> Iterator[Judged]:
        """Yield the images as `cahlib.model.pairs.score_pairs` does, with all scores."""
        judged = score_pairs(
            images, self.clip, self.safety, judge=judge, stats=stats, heads=self.heads
        )
        for each in self.further:
            judged = each.scored(judged, judge.batch, stats)
        return self.open_nsfw.scored(judged) if self.open_nsfw else judged

    @property
    def name(self) -> str:
        """The name of CLIP's model and weights."""
        return self.clip.name

    def worked(self) -> float:
        """Return the seconds that the busiest model has worked."""
        return max(each.worked() for each in (self.clip, *(more.clip for more in self.further)))

    def scores(self) -> tuple[str, ...]:
        """Return the names of the scores that a pair may have."""
        own = *score_names(self.safety, self.heads), *([OPEN_NSFW] if self.open_nsfw else [])
        return *own, *(each.column for each in self.further)

    def columns(self, *, layout: int) -> dict[str, str]:
        """Return the columns: those of further models are their names."""
        further = {each.column: each.column for each in self.further}
        own = (score for score in self.scores() if score not in further)
        return score_columns(self.name, own, layout=layout) | further


class NoScorer:
    """Keeps all images without a model."""

    name = NO_MODEL

    def judged(self, images: Iterable[Image], judge: Judge, stats: Stats) -> Iterator[Judged]:
        """Yield each image as a pair."""
        nothing = np.empty(0, np.float16)
        for image in images:
            stats.entered[Stage.JUDGE] += 1
            stats.left[Stage.JUDGE] += 1
            yield Judged(
                image=image,
                similarity=None,
                nsfw="",
                scores={},
                image_embedding=nothing,
                text_embedding=nothing,
                reason=None,
            )

    def worked(self) -> float:
        """Return 0."""
        return 0.0

    def scores(self) -> tuple[str, ...]:
        """Return no names."""
        return ()

    def columns(self, *, layout: int) -> dict[str, str]:
        """Return no columns."""
        return {}


def check_model_files(judge: Judge) -> None:
    """Raise ConfigError for invalid files of models, heads or rules.

    Raise ModuleNotFoundError if the libraries of models are not installed.
    """
    if judge.no_judge:
        return
    for library in ("torch", "torchvision", "open_clip"):
        if find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
    if judge.nsfw_open:
        require_open_nsfw()
    source = find_source(judge)
    require_known_model(source)
    check_heads(judge.heads, source.name)
    read_safety_rules(judge.safety)
    check_further(judge)


def load_scorer(judge: Judge) -> Scorer:
    """Load the models that the settings name; raise ConfigError if they do not fit together."""
    if judge.no_judge:
        return NoScorer()
    from cahlib.model.clip import load_clip

    loaded = load_clip(judge)
    return ModelScorer(
        clip=loaded,
        safety=Safety.load(judge.safety, loaded),
        heads=load_heads(judge.heads, loaded),
        open_nsfw=OpenNsfw() if judge.nsfw_open else None,
        further=load_further(judge),
    )
