"""Presets: models with their thresholds, by the names that users give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model and its threshold."""

    model: str  #: open_clip's name
    pretrained: str  #: open_clip's name of the weights
    threshold: float  #: least cosine of image and text
    why: str
    side: int = 224  #: pixels of the model's input


#: Thresholds: LAION-400M (Schuhmann et al. 2021, arXiv:2111.02114) and LAION-5B (2022,
#: arXiv:2210.08402). The other two models have no published threshold: theirs is a starting point.
PRESETS: Mapping[str, Preset] = {
    "laion400m": Preset(
        model="ViT-B-32", pretrained="openai", threshold=0.30, why="the rule that built LAION-400M"
    ),
    "laion5b": Preset(
        model="ViT-B-32", pretrained="openai", threshold=0.28, why="LAION-5B's rule for English"
    ),
    "laion5b-multi": Preset(
        model="xlm-roberta-base-ViT-B-32",
        pretrained="laion5b_s13b_b90k",
        threshold=0.26,
        why="any language, with LAION-5B's multilingual threshold",
    ),
    "datacomp": Preset(
        model="ViT-B-32-256",
        pretrained="datacomp_s34b_b86k",
        threshold=0.28,
        why="a better model, as fast",
        side=256,
    ),
    "quality": Preset(
        model="ViT-L-14-quickgelu", pretrained="dfn2b", threshold=0.28, why="the best and slowest"
    ),
    "raw": Preset(
        model="ViT-B-32",
        pretrained="openai",
        threshold=-1.0,
        why="keeps all that is safe, with its scores, to be chosen from later",
    ),
}
