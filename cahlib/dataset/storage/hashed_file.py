"""Files of a shard: hashed while they are written, and renamed when all of them are complete.

A file is written once, front to back, under a temporary name. Nothing here knows what is in it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cahlib.core.atomic import TEMPORARY_SUFFIX
from cahlib.core.errors import disk_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """The size and checksum of a finished file."""

    size: int  #: bytes
    sha256: str  #: hex


def temporary_path(path: Path) -> Path:
    """Return where a file is until it is published: hidden, as pandas reads all others."""
    return path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")


class HashedFile:
    """A file that is hashed while it is written, and gets its name when it is published."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = temporary_path(path)
        self._hash, self._size = hashlib.sha256(), 0
        with disk_errors(path), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = opened.enter_context(open(self._at, "wb"))
            self._opened = opened.pop_all()

    def scratch(self) -> BinaryIO:
        """Open an unnamed file that is closed with this one; a crash leaves nothing of it."""
        with disk_errors(self.path):
            file = tempfile.TemporaryFile(dir=self.path.parent)
        return cast(BinaryIO, self._opened.enter_context(file))

    def write(self, data: bytes) -> int:
        """Append bytes; raise ConfigError or RunError if the disk fails."""
        with disk_errors(self.path):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def close(self) -> FileRecord:
        """Flush everything to the disk, and return what the file must look like."""
        with disk_errors(self.path), self._opened:
            self._file.flush()
            os.fsync(self._file.fileno())
        return FileRecord(size=self._size, sha256=self._hash.hexdigest())

    def publish(self) -> None:
        """Rename the closed file to its name."""
        with disk_errors(self.path):
            self._at = self._at.replace(self.path)

    def discard(self) -> None:
        """Remove the file, published or not."""
        # What a full disk refused cannot be flushed now either; that error is known already.
        with suppress(OSError):
            self._opened.close()
        self._at.unlink(missing_ok=True)
