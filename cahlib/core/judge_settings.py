"""The settings of the models that judge a run's pairs."""

from __future__ import annotations

from dataclasses import dataclass

from cahlib.core.errors import ConfigError
from cahlib.core.presets import PRESETS
from cahlib.core.settings import Checked, option

#: The model of a dataset that no model has judged.
NO_MODEL = "none"

#: What needs a model.
_OF_MODELS = ("model", "threshold", "safety", "heads", "nsfw_open", "also", "cascade")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge(Checked):
    """The model that scores the pairs, and the thresholds."""

    preset: str = option(
        "laion400m", "model and threshold together", choices=tuple(PRESETS), first="run gpu"
    )
    model: str = option(
        "", "model to use instead of the preset's: open_clip's name, or a local model's folder",
        file=True,
    )  # fmt: skip
    pretrained: str = option(
        "", "that model's weights: open_clip's name or a file (a model folder has its own)",
        file=True,
    )  # fmt: skip
    threshold: float | None = option(
        None, "lowest similarity of a pair to keep; the preset's if not given", least=-1, most=1,
        first="run gpu",
    )  # fmt: skip
    safety: str = option(
        "", "file of safety categories to use instead of the built-in ones", file=True
    )
    heads: tuple[str, ...] = option(
        (), "JSON files of heads that score embeddings, each beside its safetensors file", file=True
    )
    nsfw_open: bool = option(
        False, "also score kept pairs with Yahoo's Open NSFW (needs cahlib[nsfw])"
    )
    also: tuple[str, ...] = option(
        (), "further models that score the kept pairs, each into a column: presets, MODEL/WEIGHTS "
        "of open_clip's names, or folders",
        file=True,
    )  # fmt: skip
    cascade: tuple[str, ...] = option(
        (), "further models as MODEL:THRESHOLD, cheapest first: each scores what is kept so far, "
        "and drops what is less similar",
        file=True,
    )  # fmt: skip
    harm_looks: tuple[str, ...] = option(
        (), "files of perceptual hashes (16 hex digits); images that look like one are dropped",
        file=True, grows=True,
    )  # fmt: skip
    harm_distance: int = option(
        4, "for --harm-looks: how many bits of 64 may differ", least=0, most=8
    )
    no_judge: bool = option(
        False, "keep each image that passes all checks, without a model: no similarity, no "
        "embeddings; torch is not needed",
    )  # fmt: skip
    batch: int = option(256, "images per batch", least=1, most=65_536, free=True, first="gpu")
    device: str = option(
        "auto", "where the model runs", choices=("auto", "cpu", "cuda", "mps"), free=True,
        first="gpu",
    )  # fmt: skip

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.model and self.threshold is None:
            raise ConfigError("threshold: another model needs its own threshold, for example 0.28.")
        if self.pretrained and not self.model:
            raise ConfigError("pretrained: give the model that the weights belong to as well.")
        for name in _OF_MODELS if self.no_judge else ():
            if getattr(self, name):
                raise ConfigError(f"{name}: no_judge uses no model; leave out one of the two.")
        for each in self.cascade:
            split_threshold(each)

    def chosen(self) -> tuple[str, str, float]:
        """Return model, weights and threshold: the preset's, those given instead, or none."""
        if self.no_judge:
            return NO_MODEL, "", -1.0
        preset = PRESETS[self.preset]
        threshold = preset.threshold if self.threshold is None else self.threshold
        if self.model:
            return self.model, self.pretrained, threshold
        return preset.model, preset.pretrained, threshold


def split_threshold(text: str) -> tuple[str, float]:
    """Return the model and the threshold of a part of a cascade; raise ConfigError."""
    model, _, threshold = text.rpartition(":")
    try:
        least = float(threshold)
    except ValueError:
        least = 2.0
    if not model or not -1 <= least <= 1:
        raise ConfigError(
            f"cascade: {text!r} is not valid; give a model and its threshold from -1 to 1, for "
            "example quality:0.28."
        )
    return model, least
