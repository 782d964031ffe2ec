"""Where the files that a job names lie on this machine: as named, or where they were brought.

A job that runs elsewhere names files by their paths at home; whoever brings them notes it here.
"""

from __future__ import annotations

from collections.abc import Mapping

_brought: dict[str, str] = {}


def bring(files: Mapping[str, str]) -> None:
    """From now on, this process finds these files at other paths than their own."""
    _brought.update(files)


def here(path: str) -> str:
    """Where a file lies on this machine."""
    return _brought.get(path, path)
