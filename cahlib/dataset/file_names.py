"""Names of a dataset's files, and checks that nothing else is in their place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cahlib.core.atomic import TEMPORARY_SUFFIX
from cahlib.core.errors import ConfigError
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.layout import (
    FOLDERS,
    FURTHER_SUFFIX,
    LAYOUT,
    MANIFESTS,
    PAGES,
    dataset_folders,
)
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.tar_index import TAR_INDEX_FILES

#: Files in the dataset's folder itself, and those in its `run` that are opened.
_TOPS = (*PAGES, "dataset.json", "changes.jsonl")
_HOME = RunDirectory()
_RUN = tuple(map(str, (_HOME.lock, _HOME.job, _HOME.ledger, _HOME.status)))

#: How the names of files begin that a cloud drive may have copied.
DATASET_PREFIXES = tuple(
    [f"{folder}/" for folder in FOLDERS]
    + ["img_emb.", "text_emb."]
    + [name.partition(".")[0] for name in (*_TOPS,)]
)

#: Suffixes of the files of an interrupted run.
UNFINISHED_SUFFIXES = TEMPORARY_SUFFIX, ".trial"

_ID = "[A-Za-z0-9_-][A-Za-z0-9._-]*"  # what `Shard.id` may be
_VECTORS = [LAYOUT[form].replace("/", f"{FURTHER_SUFFIX}/") for form in ("img_emb", "text_emb")]
_PATHS = (*LAYOUT.values(), *_VECTORS, f"{MANIFESTS}/{{}}.json", *TAR_INDEX_FILES)

#: A file that a run may have made, finished or not.
DATASET_FILE = re.compile(
    "|".join(
        rf"{folder}/(\.?{name.format(_ID)}((\.\d+)?{re.escape(TEMPORARY_SUFFIX)})?|\.trial)"
        for folder, _, name in (
            re.sub(r"\.(?=\w+$)", r"\.", path).partition("/") for path in _PATHS
        )
    )
)


def find_obstacles(folder: Path) -> Iterator[str]:
    """Yield the paths that are not a file, or not a folder, where this dataset needs one.

    A link counts as its target; a broken one in place of a file is replaced.
    """
    for name in dataset_folders(files_at(folder).folders()):
        path = folder / name
        if not path.is_dir():
            if path.exists() or path.is_symlink():
                yield name
            continue
        with os.scandir(path) as entries:
            for entry in entries:
                inside = f"{name}/{entry.name}"
                if not entry.is_file() and DATASET_FILE.fullmatch(inside) and os.path.exists(entry):
                    yield inside
    yield from (name for name in _TOPS if _obstructs(folder / name))


def _obstructs(path: Path) -> bool:
    return path.exists() and not path.is_file()


def describe_obstacle(obstacle: str) -> str:
    """Return what is wrong with an obstacle."""
    kind = "folder" if obstacle in FOLDERS else "file"
    return f"{obstacle} is not a {kind}, which a dataset needs there"


def require_writable(folder: Path) -> None:
    """Raise ConfigError if a dataset evidently cannot be written to this folder.

    Better now than when the first shard is ready after an hour.
    """
    whole = folder.absolute()
    above = next((each for each in (whole, *whole.parents) if os.path.exists(each)), whole)
    if above.is_file():
        where = "" if above == whole else f" cannot be made: {above}"
        raise ConfigError(f"output: {folder}{where} is a file; choose another folder.")
    for name in ("", _HOME.path):
        _require_rights(folder / name, os.R_OK | os.W_OK | os.X_OK)
    for name in dataset_folders(files_at(folder).folders()):
        _require_rights(folder / name, os.R_OK | os.W_OK | os.X_OK)
    for name in (*find_obstacles(folder), *(name for name in _RUN if _obstructs(folder / name))):
        raise ConfigError(
            f"output: {folder}/{describe_obstacle(name)}; move it away, or choose another folder."
        )
    for name in _RUN:
        _require_rights(folder / name, os.R_OK | os.W_OK)


def _require_rights(path: Path, rights: int) -> None:
    effective = os.access in os.supports_effective_ids
    if os.path.exists(path) and not os.access(path, rights, effective_ids=effective):
        raise ConfigError(
            f"output: {path} cannot be written (Permission denied); change its permissions, or "
            "choose another folder."
        )
