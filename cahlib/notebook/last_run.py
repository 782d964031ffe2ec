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

from cahlib.core.atomic import write_file
from cahlib.core.config import Job, rename_former
from cahlib.core.errors import CahError


def remember_job(job: Job) -> None:
    """Note a job's settings, which hold no secret; a disk that refuses costs only the comfort."""
    with suppress(CahError, RuntimeError):  # where nobody has a home
        known = _all() | dict.fromkeys(_keys(), job.values())
        write_file(_path(), json.dumps(known))


def last_settings() -> dict[str, Any]:
    """The settings of the last job from here; nothing if there was none."""
    known = _all()
    found: Any = next((known[key] for key in _keys() if key in known), {})
    return rename_former(found, warn=False) if isinstance(found, Mapping) else {}


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
