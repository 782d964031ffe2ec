"""Everything that scores the pairs of a run: CLIP, the safety rules and the heads.

Nothing here imports torch before a model is loaded, so that other commands start without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cahlib.core.config import Judge
from cahlib.core.records import Image, Judged, Stats
from cahlib.model.heads import Head, check_heads, load_heads
from cahlib.model.model_source import find_source
from cahlib.model.open_nsfw import OPEN_NSFW, OpenNsfw, require_open_nsfw
from cahlib.model.pairs import score_names, score_pairs
from cahlib.model.safety import Safety, read_safety_rules

if TYPE_CHECKING:
    from cahlib.model.clip import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """The loaded models of a run."""

    clip: Clip
    safety: Safety
    heads: tuple[Head, ...]
    open_nsfw: OpenNsfw | None = None

    def judged(self, images: Iterable[Image], judge: Judge, stats: Stats) -> Iterator[Judged]:
        """Yield the images as `cahlib.model.pairs.score_pairs` does, with all scores."""
        judged = score_pairs(
            images, self.clip, self.safety, judge=judge, stats=stats, heads=self.heads
        )
        return self.open_nsfw.scored(judged) if self.open_nsfw else judged

    def scores(self) -> tuple[str, ...]:
        """Return the names of the scores that a pair may have."""
        return *score_names(self.safety, self.heads), *([OPEN_NSFW] if self.open_nsfw else [])


def check_model_files(judge: Judge) -> None:
    """Raise ConfigError for invalid files of models, heads or rules.

    Raise ModuleNotFoundError if the libraries of models are not installed.
    """
    for library in ("torch", "torchvision", "open_clip"):
        if find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
    if judge.nsfw_open:
        require_open_nsfw()
    check_heads(judge.heads, find_source(judge).name)
    read_safety_rules(judge.safety)


def load_scorer(judge: Judge) -> Scorer:
    """Load the models that the settings name; raise ConfigError if they do not fit together."""
    from cahlib.model.clip import load_clip

    loaded = load_clip(judge)
    return Scorer(
        clip=loaded,
        safety=Safety.load(judge.safety, loaded),
        heads=load_heads(judge.heads, loaded),
        open_nsfw=OpenNsfw() if judge.nsfw_open else None,
    )
