"""A model in a folder: which of its files is what.

It knows open_clip's form, not open_clip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cahlib.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """The files of a model."""

    config: Path  #: ``<name>.json``: its configuration, as open_clip writes one
    weights: Path  #: ``.safetensors`` or ``.pt``
    bpe: Path | None  #: ``bpe.txt.gz``: the merges of its vocabulary, if it has its own


def find_local_model(folder: Path) -> LocalModel:
    """The model in a folder; raises ConfigError if there is not exactly one."""
    folder = folder.absolute()
    bpe = folder / "bpe.txt.gz"
    files = sorted(folder.iterdir())
    configs = [file for file in files if file.suffix == ".json" and _describes(file)]
    weights = [file for file in files if file.suffix in (".safetensors", ".pt")]
    return LocalModel(
        config=_only(configs, f"model description (.json) in {folder}"),
        weights=_only(weights, f"file of weights (.safetensors or .pt) in {folder}"),
        bpe=bpe if bpe.is_file() else None,
    )


def _describes(file: Path) -> bool:
    """Whether a JSON file is a model's configuration."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"model: {file} is not valid JSON ({error}).") from error
    return isinstance(content, dict) and {"embed_dim", "vision_cfg", "text_cfg"} <= content.keys()


def _only(files: list[Path], what: str) -> Path:
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ConfigError(f"model: there must be one {what}, and there is {found}.")
    return files[0]
