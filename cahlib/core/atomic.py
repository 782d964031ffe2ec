"""Files that are written whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cahlib.core.errors import disk_errors

#: How the name of a file ends while it is written.
TEMPORARY_SUFFIX = ".part"


@contextmanager
def new_file(path: Path, *, mode: int = 0o666, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file that replaces the one at ``path`` when the ``with`` ends without an error.

    ``mode`` holds from the first byte on. Without ``sync`` a power cut may leave the file empty.
    Raise ConfigError for an unsuitable folder, RunError for a full disk or one that fails.
    """
    # the process's own: several may write the same file at once; hidden as pandas reads all others
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with open(os.open(temporary, flags, mode), "wb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_file(path: Path, data: str | bytes, *, mode: int = 0o666, sync: bool = True) -> None:
    """Replace a whole file, or leave the old one; raise as `new_file` does."""
    with new_file(path, mode=mode, sync=sync) as file:
        file.write(data.encode() if isinstance(data, str) else data)
