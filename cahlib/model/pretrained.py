"""Find out how weights were trained, which no file says, from what open_clip knows of them.

Weights that were trained with QuickGELU give other scores with GELU, and so do images of another
size, mean or deviation; nothing fails because of it. open_clip knows all that of the weights it
lists. A file is recognized by its SHA-256, which open_clip knows of some, or by its name.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahlib.core.errors import ConfigError
from cahlib.core.fingerprint import file_checksum
from cahlib.model.frameworks import open_clip

_QUICK = "-quickgelu"
_PICTURES = ("mean", "std", "interpolation", "resize_mode")
_DIGEST = re.compile(r"/([0-9a-f]{64})/[^/]*\Z|-([0-9a-f]{8})\.[a-z]+\Z")

#: What open_clip knows of weights: their source, and how they were trained.
WeightsInfo = Mapping[str, Any]


def find_weights_info(model: str, pretrained: str, *, described: bool = False) -> WeightsInfo:
    """Return what open_clip knows of weights, given by name or as a file.

    Raise ConfigError if a file is not recognized and it matters, unless its own configuration
    has ``described`` the model.
    """
    file = Path(pretrained)
    if not file.is_file():
        return dict(open_clip.get_pretrained_cfg(model, pretrained) or {})
    tags = _family(model)
    tag = _recognized(file, tags)
    if _is_program(file):
        instead = (
            f"write pretrained={tag}, which are the same weights" if tag
            else "save its state dict as a .safetensors file"
        )  # fmt: skip
        raise ConfigError(f"pretrained: {file} is a TorchScript program, not weights; {instead}.")
    quick = _is_quick(model)
    if tag:
        if quick and not tags[tag].get("quick_gelu"):
            raise ConfigError(
                f"pretrained: {file} holds {tag}, trained with GELU; its model is "
                f"{model.removesuffix(_QUICK)}."
            )
        return tags[tag]
    alike = [each for each in tags.values() if each.get("quick_gelu") or not quick]
    asked = _PICTURES if quick else ("quick_gelu", *_PICTURES)
    if not described and any(len({each.get(name) for each in alike}) > 1 for name in asked):
        raise ConfigError(
            f"pretrained: {file} could be any of the weights of {model}, and these were "
            "not all trained alike (GELU or QuickGELU, size and colours of pictures); put "
            f"open_clip's name for them into the file's name ({', '.join([*tags][:3])} …), or name "
            "a folder that holds the file and the model's own configuration."
        )
    shared = dict(alike[0]) if alike and not described else {}
    return {name: value for name, value in shared.items() if name in ("quick_gelu", *_PICTURES)}


def image_options(known: WeightsInfo) -> dict[str, Any]:
    """Return the image options of weights for `open_clip.create_model_from_pretrained`."""
    return {f"image_{name}": known[name] for name in _PICTURES if name in known}


def _is_quick(model: str) -> bool:
    return bool((open_clip.get_model_config(model) or {}).get("quick_gelu"))


def _family(model: str) -> dict[str, WeightsInfo]:
    """Return the weights of a model by their tags, with those of its other activation."""
    base = model.removesuffix(_QUICK)
    return {
        tag: dict(open_clip.get_pretrained_cfg(name, tag) or {})
        for name in (base, base + _QUICK)
        for tag in open_clip.list_pretrained_tags_by_model(name)
    }


def _recognized(file: Path, tags: Mapping[str, WeightsInfo]) -> str:
    """Return the tag of the weights in a file, "" if it is not recognized."""
    urls = {tag: str(each.get("url") or "") for tag, each in tags.items()}
    digests = {tag: match[1] or match[2] for tag in tags if (match := _DIGEST.search(urls[tag]))}
    if digests:
        own = file_checksum(str(file))
        if found := [tag for tag, digest in digests.items() if own.startswith(digest)]:
            return found[0]
    # named as where they are downloaded from, or in the hub's cache
    for tag, url in urls.items():
        hub = str(tags[tag].get("hf_hub") or "").strip("/").replace("/", "--")
        if file.name == url.rpartition("/")[2] or hub and f"models--{hub}" in file.parts:
            return tag
    named = [tag for tag in tags if f"-{_plain(tag)}-" in f"-{_plain(file.stem)}-"]
    return max(named, key=len, default="")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _is_program(file: Path) -> bool:
    """Return whether a file is a TorchScript archive, as OpenAI published its weights."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
