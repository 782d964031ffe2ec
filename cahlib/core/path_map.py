"""The path map: where the files that a job names are on this machine.

A job that runs on another machine names files by their paths on the driver; file sync copies them
here and records where.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_paths: dict[str, str] = {}


def map_paths(files: Mapping[str, str]) -> None:
    """Record the local paths of a driver's files, for this process."""
    _paths.update(files)


def local_path(path: str) -> str:
    """Return where a file is on this machine."""
    return _paths.get(path, path)


def expand_home(path: str) -> Path:
    """Return a path with "~" expanded; an unknown user's stays as it is."""
    return Path(os.path.expanduser(path))
