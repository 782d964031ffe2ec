"""What was planned or started last from a notebook, for a second "Run all" and a new kernel.

Where Jupyter does not tell which notebook it is, or nothing comes from it, its folder's last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cahlib.config import Job


def remember(job: Job) -> None:
    """Note a job's settings, which hold no secret; a disk that refuses costs only the comfort."""
    with suppress(OSError, RuntimeError):  # where nobody has a home
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        known = _all() | dict.fromkeys(_keys(), job.values())
        fresh.write_text(json.dumps(known), encoding="utf-8")
        fresh.replace(path)


def remembered() -> dict[str, Any]:
    """The settings of the last job from here; nothing if there was none."""
    known = _all()
    found: Any = next((known[key] for key in _keys() if key in known), {})
    return dict(found) if isinstance(found, Mapping) else {}


def _keys() -> list[str]:
    """This notebook, as Jupyter tells its kernel, and the folder."""
    folder = Path.cwd()
    own = os.environ.get("JPY_SESSION_NAME")
    return [*([str(folder / own)] if own else []), str(folder)]


def _all() -> dict[str, Any]:
    with suppress(OSError, ValueError, RuntimeError):
        found = json.loads(_path().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _path() -> Path:
    return Path.home() / ".cache" / "cahlib" / "notebook.json"
