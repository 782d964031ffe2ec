"""The settings that decide what is in a dataset, in a form that another machine can compare.

A setting that names a file is compared by the file's content, not its path: the same head or model
on another machine is the same setting. Blocklists are compared by name, as they grow. This module
does not know which settings there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cahlib.core.path_map import expand_home, local_path
from cahlib.core.settings import Setting

#: A path of another machine, of which a dataset has the last part and the checksum.
_PUBLISHED = re.compile(r"/sha256:([0-9a-f]{64})/([^/]+)")

_LOGIN = re.compile(r"(?<=://)[^/@]*@")

#: Files of a model's folder that define the model, unlike a README beside them.
_MODEL = (".json", ".safetensors", ".pt", ".gz")


def fingerprint(settings: Iterable[Setting], job: Any) -> dict[str, Any]:
    """Return the values that decide the content of a job's dataset, by name, in JSON's types.

    A file or a folder is ``{"name": …, "sha256": …}``.
    """
    return {
        each.name: portable_value(each, each.of(job)) for each in settings if not each.option.free
    }


def portable_value(setting: Setting, value: Any) -> Any:
    """Return a setting's value in JSON's types, with files by their content."""
    if isinstance(value, tuple):
        return [portable_value(setting, each) for each in value]
    if not isinstance(value, str) or not value:
        return value
    if setting.option.grows:  # dropping more than before does not invalidate what is there
        return Path(value).name
    return _file(value) if setting.option.file else _private(value)


def restored_value(value: Any) -> Any:
    """Return a value of which `portable_value` makes this one; no file can be read by it."""
    if isinstance(value, list):
        return tuple(restored_value(each) for each in value)
    return f"/sha256:{value['sha256']}/{value['name']}" if isinstance(value, Mapping) else value


def same_value(one: Any, other: Any) -> bool:
    """Return whether two portable values are the same; files are compared by content."""
    return bool(_core(one) == _core(other))


def settings_digest(settings: Iterable[Setting], values: Mapping[str, Any]) -> str:
    """Return the hex sha256 of a fingerprint.

    Defaults are left out, so a setting added by a later version does not change it. For a float
    setting, 1 and 1.0 are the same.
    """
    every = [*settings]
    plain = {each.name: _core(portable_value(each, each.default)) for each in every}
    broken = {each.name for each in every if each.type is float}
    said = {
        name: float(value) if name in broken and value is not None else _core(value)
        for name, value in values.items()
    }
    said = {name: value for name, value in said.items() if value != plain.get(name)}
    return json_checksum(said)


def json_checksum(values: Mapping[str, Any]) -> str:
    """Return the hex sha256 of values in JSON's types, independent of their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def setting_differences(
    settings: Iterable[Setting], there: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, str]:
    """Return the settings in which two fingerprints differ, each with a phrase of both values."""
    plain = {each.name: portable_value(each, each.default) for each in settings}
    found = {}
    for name in dict.fromkeys((*asked, *there)):
        has, wants = (side.get(name, plain.get(name)) for side in (there, asked))
        if _core(has) != _core(wants):
            found[name] = f"{name} {_shown(has)} instead of {_shown(wants)}"
    return found


def _file(value: str) -> Any:
    """Return what identifies a file or a model's folder; any other value as it is published."""
    path = expand_home(local_path(value))
    if path.is_dir():
        parts = [each for each in sorted(path.iterdir()) if each.suffix in _MODEL]
        # open_clip names a model of this form after its folder, and so are its columns
        named = path.absolute().name if (path / "open_clip_config.json").is_file() else ""
    elif path.is_file():
        beside = path.with_suffix(".safetensors")  # a head's weights
        parts = [path, beside] if path.suffix == ".json" and beside.is_file() else [path]
        named = ""
    else:
        return _part_of_cascade(value) or _private(value)
    sums = [file_checksum(str(each)) for each in parts]
    if len(sums) == 1 and not path.is_dir():
        return {"name": path.name, "sha256": sums[0]}
    each_named = [named, *((each.name, sha) for each, sha in zip(parts, sums, strict=True))]
    whole = hashlib.sha256(json.dumps(each_named if path.is_dir() else sums).encode())
    return {"name": path.absolute().name, "sha256": whole.hexdigest()}


def _part_of_cascade(value: str) -> Any:
    """Return what identifies a model's folder with a threshold, or None if it is no such thing."""
    model, _, threshold = value.rpartition(":")
    if not model or not expand_home(local_path(model)).is_dir():
        return None
    found = _file(model)
    both = json.dumps([found["sha256"], threshold]).encode()
    return {"name": f"{found['name']}:{threshold}", "sha256": hashlib.sha256(both).hexdigest()}


def _private(value: str) -> Any:
    """Return a text as it may be published: only the last part of a path, a URL without login."""
    if published := _PUBLISHED.fullmatch(value):
        return {"name": published[2], "sha256": published[1]}
    if value.startswith(("/", "~", "./", "../")):
        return {"name": Path(value).name, "sha256": hashlib.sha256(os.fsencode(value)).hexdigest()}
    return _LOGIN.sub("", value)


def file_checksum(path: str) -> str:
    """Return the hex sha256 of a file, computed again only if size or mtime have changed."""
    known = os.stat(path)
    return _summed(path, known.st_size, known.st_mtime_ns)


@lru_cache(maxsize=256)
def _summed(path: str, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _core(value: Any) -> Any:
    """Return the part of a value that is compared: for files, the content's checksum."""
    if isinstance(value, list | tuple):
        return [_core(each) for each in value]
    return value["sha256"] if isinstance(value, Mapping) else value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_shown, value)) or "none"
    if isinstance(value, Mapping):
        return f"{value['name']} (sha256 {value['sha256'][:8]}…)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == "none":  # a value of its own, e.g. of text_column
        return repr(value)
    return "none" if value in ("", None) else str(value)
