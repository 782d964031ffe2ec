"""Find the model that the settings name, without loading it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from cahlib.core.config import Judge, settings
from cahlib.core.errors import ConfigError
from cahlib.core.fingerprint import portable_value, settings_digest
from cahlib.core.path_map import expand_home
from cahlib.core.presets import PRESETS
from cahlib.core.settings import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model as open_clip is asked for it."""

    name: str  #: for messages and the names of scores: "ViT-B-32/openai"
    typed: str  #: as the settings name the model
    model: str
    pretrained: str | None  #: weights that open_clip knows, or their file
    listed: bool = False  #: one of the models that open_clip lists
    config: Path | None = None  #: the configuration of a model that open_clip does not know
    bpe: Path | None = None  #: the merges of its vocabulary, if it has its own


def find_source(judge: Judge) -> ModelSource:
    """Return the source of the model; raise ConfigError if a folder does not hold one.

    A model is a preset's, a name that open_clip knows, ``hf-hub:…``, or a folder. A folder holds
    ``<name>.json`` (open_clip's configuration), one file of weights and, for a vocabulary of its
    own, ``bpe.txt.gz``; or what a repository at Hugging Face holds.
    """
    name, pretrained, _ = judge.chosen()
    if judge.no_judge:
        return ModelSource(name=name, typed="", model="", pretrained=None)
    folder = expand_home(name)
    if not folder.is_dir():
        return _named(name, pretrained)
    if pretrained:
        raise ConfigError(f"pretrained: the folder {name} brings its own weights; leave it empty.")
    return _local(folder)


def named_judge(setting: str, name: str) -> Judge:
    """Return the settings of a model by its name.

    That is a preset, a folder, ``hf-hub:…`` or MODEL/WEIGHTS. Raise ConfigError, which names the
    setting, if it is none of these.
    """
    if name in PRESETS:
        return Judge(preset=name, threshold=-1)
    if name.startswith("hf-hub:") or expand_home(name).is_dir():
        return Judge(model=name, threshold=-1)
    model, _, weights = name.rpartition("/")
    is_path = name.startswith(("/", "~", ".")) or expand_home(model).is_dir()
    if not model or not weights or is_path:
        raise ConfigError(
            f"{setting}: {name!r} is neither a preset ({', '.join(PRESETS)}) nor a folder; a model "
            "of open_clip's is given with its weights, for example ViT-L-14/openai."
        )
    return Judge(model=model, pretrained=weights, threshold=-1)


def typed_judge(model: str, pretrained: str) -> Judge:
    """Return the settings of a model that is named by one option, or by two."""
    if pretrained or ("/" not in model and model not in PRESETS):
        return Judge(model=model, pretrained=pretrained, threshold=-1)
    return named_judge("model", model)


def model_digest(model: str, pretrained: str) -> str:
    """Return what identifies a model and its weights, files by their content."""
    values = {"model": model, "pretrained": pretrained}
    known = model_settings()
    return settings_digest(
        known, {each.name: portable_value(each, values[each.name]) for each in known}
    )


def model_settings() -> list[Setting]:
    """Return the settings that identify a model and its weights."""
    return [each for each in settings() if each.name in ("model", "pretrained")]


def require_known_model(source: ModelSource, setting: str = "model") -> None:
    """Raise ConfigError, which names the setting, if open_clip does not know the model."""
    known = _known_models() if source.listed else []
    if not known or source.model in known:
        return
    unknown = "is neither a folder nor a name that open_clip knows"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source.typed):
        raise ConfigError(
            f"{setting}: {source.typed} {unknown}; for a model at Hugging Face write "
            f"hf-hub:{source.typed}, and leave pretrained empty."
        )
    near = ", ".join(get_close_matches(source.model, known)) or "ViT-B-32"
    raise ConfigError(f"{setting}: {source.typed!r} {unknown}; try {near}.")


def _known_models() -> list[str]:
    """Return the models that open_clip lists, from its files: to import it takes seconds."""
    if loaded := sys.modules.get("open_clip"):  # others may have been added
        return list(loaded.list_models())
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        return []
    return [file.stem for file in Path(package.origin).parent.glob("model_configs/*.json")]


def _named(model: str, pretrained: str) -> ModelSource:
    """Return a model that open_clip knows, with weights that it knows or their file."""
    if model.startswith("hf-hub:"):
        return ModelSource(name=model, typed=model, model=model, pretrained=None)
    name, file = model.replace("/", "-"), expand_home(pretrained)
    is_file = bool(pretrained) and file.is_file()
    return ModelSource(
        name=f"{name}/{file.stem if is_file else pretrained}",
        typed=model,
        model=name,
        pretrained=str(file) if is_file else pretrained,
        listed=True,
    )


def _local(folder: Path) -> ModelSource:
    """Return the model in a folder: a repository of Hugging Face's, or files as open_clip has."""
    folder = folder.absolute()
    if (folder / "open_clip_config.json").is_file():
        return ModelSource(
            name=folder.name, typed=str(folder), model=f"local-dir:{folder}", pretrained=None
        )
    files = sorted(folder.iterdir())
    config = _only(
        [file for file in files if file.suffix == ".json" and _is_model_config(file)],
        f"model description (.json) in {folder}",
    )
    weights = _only(
        [file for file in files if file.suffix in (".safetensors", ".pt")],
        f"file of weights (.safetensors or .pt) in {folder}",
    )
    bpe = folder / "bpe.txt.gz"
    return ModelSource(
        name=f"{config.stem}/{weights.stem}",
        typed=str(folder),
        model=config.stem,
        pretrained=str(weights),
        config=config,
        bpe=bpe if bpe.is_file() else None,
    )


def _is_model_config(file: Path) -> bool:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"model: {file} is not valid JSON ({error}).") from error
    return isinstance(content, dict) and {"embed_dim", "vision_cfg", "text_cfg"} <= content.keys()


def _only(files: list[Path], what: str) -> Path:
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ConfigError(f"model: there must be one {what}, but there is {found}.")
    return files[0]
