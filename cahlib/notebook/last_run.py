"""The settings last planned or started from a notebook, for another "Run all" or a new kernel.

If Jupyter does not tell which notebook it is, those last used in its folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cahlib.core.atomic import write_file
from cahlib.core.config import Job, rename_former
from cahlib.core.errors import CahError


def remember_job(job: Job) -> None:
    """Store a job's settings, which hold no secret; a failure to write is ignored."""
    with suppress(CahError, RuntimeError):  # where nobody has a home
        known = _all() | dict.fromkeys(_keys(), job.values())
        write_file(_path(), json.dumps(known))


def last_settings() -> dict[str, Any]:
    """Return the settings of the last job from here; an empty dict if there was none."""
    known = _all()
    found: Any = next((known[key] for key in _keys() if key in known), {})
    return rename_former(found, warn=False) if isinstance(found, Mapping) else {}


def _keys() -> list[str]:
    """Return this notebook's path, if Jupyter tells its kernel, and its folder."""
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
