"""Files of a dataset in the making: hashed while they are written, then published whole.

A file is written once, front to back, under a temporary name until it is published. It does not
know what is in the file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cahlib.errors import unwritable

#: What a temporary file's name ends with; see `temporary_path`.
TEMPORARY_SUFFIX = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """What a finished file must look like."""

    size: int  #: bytes
    sha256: str  #: hex


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk's errors into ConfigError (a wrong folder) or RunError (a full disk or worse)."""
    try:
        yield
    except OSError as error:
        raise unwritable(error, path) from error


def temporary_path(path: Path) -> Path:
    """Where a file is while it is made: hidden, for pandas reads all else in a folder."""
    return path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")


class HashedFile:
    """A file in the making: hashed while it is written, published under its name at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = temporary_path(path)
        self._hash, self._size = hashlib.sha256(), 0
        with disk_errors(path), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = opened.enter_context(open(self._at, "wb"))
            self._opened = opened.pop_all()

    def scratch(self) -> BinaryIO:
        """A file without a name, closed together with this one; a crash leaves nothing of it."""
        with disk_errors(self.path):
            file = tempfile.TemporaryFile(dir=self.path.parent)
        return cast(BinaryIO, self._opened.enter_context(file))

    def write(self, data: bytes) -> int:
        """Append bytes; raises ConfigError or RunError."""
        with disk_errors(self.path):
            self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def close(self) -> FileRecord:
        """Bring everything onto the disk."""
        with disk_errors(self.path), self._opened:
            self._file.flush()
            os.fsync(self._file.fileno())
        return FileRecord(size=self._size, sha256=self._hash.hexdigest())

    def publish(self) -> None:
        """Give the closed file its name."""
        with disk_errors(self.path):
            self._at = self._at.replace(self.path)

    def discard(self) -> None:
        """Leave nothing of the file, published or not."""
        # What a full disk did not take cannot be flushed now either: that is not news.
        with suppress(OSError):
            self._opened.close()
        self._at.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one."""
    with ExitStack() as undo:
        sink = HashedFile(path)
        undo.callback(sink.discard)
        sink.write(data)
        sink.close()
        sink.publish()
        undo.pop_all()
