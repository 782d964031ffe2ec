"""Temporary folders in memory: what tests write is fsynced file by file, for power cuts they lack.

On a disk, tests of datasets took 10 % more CPU time and waited for it as long again.
"""

from __future__ import annotations

import os
import shutil

import psutil

#: Where Linux keeps files in memory.
_FOLDER = "/dev/shm"
#: What must be free there, and in memory as a whole: a run of all tests writes 1 GB.
_FREE, _AVAILABLE = 2 << 30, 8 << 30


def folder() -> str | None:
    """Return a folder in memory for the tests' files, or None where there is no room for them."""
    if not os.access(_FOLDER, os.W_OK) or os.statvfs(_FOLDER).f_flag & os.ST_NOEXEC:
        return None
    roomy = shutil.disk_usage(_FOLDER).free >= _FREE
    return _FOLDER if roomy and psutil.virtual_memory().available >= _AVAILABLE else None
