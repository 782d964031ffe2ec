"""Which model the settings name, as far as they and its files tell; nothing is loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cahlib.config import Judge
from cahlib.errors import ConfigError
from cahlib.model.local_model import find_local_model
from cahlib.places import expanded


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What open_clip is asked for."""

    name: str  #: for people and for the names of scores: "ViT-B-32/openai"
    typed: str  #: how the settings name the model
    model: str
    pretrained: str | None  #: weights that open_clip knows, or a file of them
    listed: bool = False  #: one of the models that open_clip lists
    config: Path | None = None  #: what describes a model that it does not know
    bpe: Path | None = None  #: the merges of its vocabulary, if it has its own


def find_source(judge: Judge) -> ModelSource:
    """Return where the model comes from; raise ConfigError if its folder does not hold one.

    A model is a preset's, a name that open_clip knows, ``hf-hub:…``, or a folder: one that holds
    ``<name>.json`` (open_clip's configuration), one file of weights and, if it has a vocabulary of
    its own, ``bpe.txt.gz``; or one as the Hugging Face hub keeps it.
    """
    name, pretrained, _ = judge.chosen()
    folder = expanded(name)
    if not folder.is_dir():
        return _named(name, pretrained)
    if pretrained:
        raise ConfigError(f"pretrained: the folder {name} brings its own weights; leave it empty.")
    return _local(folder)


def _named(model: str, pretrained: str) -> ModelSource:
    """A model that open_clip knows, with weights that it knows or a file of them."""
    if model.startswith("hf-hub:"):
        return ModelSource(name=model, typed=model, model=model, pretrained=None)
    name, file = model.replace("/", "-"), expanded(pretrained)
    is_file = bool(pretrained) and file.is_file()
    return ModelSource(
        name=f"{name}/{file.stem if is_file else pretrained}",
        typed=model,
        model=name,
        pretrained=str(file) if is_file else pretrained,
        listed=True,
    )


def _local(folder: Path) -> ModelSource:
    """Return a folder's model: one of the Hugging Face hub, or see `cahlib.model.local_model`."""
    if (folder / "open_clip_config.json").is_file():
        return ModelSource(
            name=folder.name, typed=str(folder), model=f"local-dir:{folder}", pretrained=None
        )
    found = find_local_model(folder)
    return ModelSource(
        name=f"{found.config.stem}/{found.weights.stem}",
        typed=str(folder),
        model=found.config.stem,
        pretrained=str(found.weights),
        config=found.config,
        bpe=found.bpe,
    )
