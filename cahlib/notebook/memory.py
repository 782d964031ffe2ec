"""What was started last from a folder, so that a second "Run all" and a new kernel find it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cahlib.config import Job


def remember(job: Job) -> None:
    """Note a job's settings, which hold no secret; a disk that refuses costs only the comfort."""
    with suppress(OSError):
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(_all() | {str(Path.cwd()): job.values()}), encoding="utf-8")
        fresh.replace(path)


def remembered() -> dict[str, Any]:
    """The settings of the last job from this folder; nothing if there was none."""
    found = _all().get(str(Path.cwd()), {})
    return dict(found) if isinstance(found, Mapping) else {}


def _all() -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(_path().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _path() -> Path:
    return Path.home() / ".cache" / "cahlib" / "notebook.json"
