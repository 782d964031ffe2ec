"""All that scores the pairs of a run: CLIP, the safety rules and the heads.

Nothing here imports torch before it must, so that what needs no model starts without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cahlib.config import Judge
from cahlib.model import heads as head_files
from cahlib.model.heads import Head
from cahlib.model.model_source import find_source
from cahlib.model.open_nsfw import OPEN_NSFW, OpenNsfw, check_installed
from cahlib.model.pairs import pairs, scores
from cahlib.model.safety import Safety, read_rules
from cahlib.records import Image, Judged, Tally

if TYPE_CHECKING:
    from cahlib.model.clip import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """What was loaded for a run."""

    clip: Clip
    safety: Safety
    heads: tuple[Head, ...]
    open_nsfw: OpenNsfw | None = None

    def judged(self, images: Iterable[Image], judge: Judge, tally: Tally) -> Iterator[Judged]:
        """Judge images as `cahlib.model.pairs.pairs` does, with all scores."""
        judged = pairs(images, self.clip, self.safety, judge=judge, tally=tally, heads=self.heads)
        return self.open_nsfw.scored(judged) if self.open_nsfw else judged

    def scores(self) -> tuple[str, ...]:
        """Return the names of the scores that a pair may have."""
        return *scores(self.safety, self.heads), *([OPEN_NSFW] if self.open_nsfw else [])


def check_files(judge: Judge) -> None:
    """Raise ConfigError for files of models, heads or rules that are not what they should be.

    Raise ModuleNotFoundError where no model can be loaded at all.
    """
    for library in ("torch", "torchvision", "open_clip"):
        if find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
    if judge.nsfw_open:
        check_installed()
    head_files.check(judge.heads, find_source(judge).name)
    read_rules(judge.safety)


def require_listed(judge: Judge) -> None:
    """Raise ConfigError if open_clip knows no model or weights of these names.

    Only names cost its import; a folder says by itself what it holds.
    """
    source = find_source(judge)
    if source.listed:
        from cahlib.model import clip

        clip.require_listed(source)


def load_models(judge: Judge) -> Models:
    """Load what the settings name; raise ConfigError for what does not fit together."""
    from cahlib.model import clip

    loaded = clip.load(judge)
    return Models(
        clip=loaded,
        safety=Safety.load(judge.safety, loaded),
        heads=head_files.load(judge.heads, loaded),
        open_nsfw=OpenNsfw() if judge.nsfw_open else None,
    )
