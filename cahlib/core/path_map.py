"""Where the files that a job names lie on this machine: as named, or where they were brought.

A job that runs elsewhere names files by their paths at home; whoever brings them notes it here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_brought: dict[str, str] = {}


def bring(files: Mapping[str, str]) -> None:
    """From now on, this process finds these files at other paths than their own."""
    _brought.update(files)


def here(path: str) -> str:
    """Where a file lies on this machine."""
    return _brought.get(path, path)


def expanded(path: str) -> Path:
    """Return a path in which "~" is the user's home; a home that nobody has stays a name."""
    return Path(os.path.expanduser(path))
