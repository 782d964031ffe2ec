"""The files of tables, on this machine or at any URL that fsspec reads."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from hashlib import sha256
from io import SEEK_END, BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from isal import igzip_lib

from cahlib import __version__
from cahlib.core.errors import (
    CahError,
    ConfigError,
    RunError,
    ShardError,
    folder_errors,
    is_disk_full,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: What unpacking raises for a file that is cut off or damaged.
UNPACKING_ERRORS: tuple[type[Exception], ...] = (
    EOFError, cast(type[Exception], igzip_lib.IsalError), zstd.ZstdError,
)  # fmt: skip

#: The same of whatever reads a file; pyarrow's error is a ValueError.
_DAMAGE: tuple[type[Exception], ...] = (ValueError, NotImplementedError, *UNPACKING_ERRORS)

#: Bytes at both ends of a file that tell whether it changed, and what it is.
END = 1 << 16

_CHUNK = 1 << 18

_WEB = ("http://", "https://")
_LOGIN = re.compile(r"\w+://[^/@]*@")


class TableError(ShardError):
    """A table that cannot be read."""


class TableAway(TableError):
    """A table that cannot be read for what may be over soon."""


def unreadable(error: TableError) -> CahError:
    """Return the error that ends a launch whose tables cannot be listed."""
    if isinstance(error, TableAway):
        return RunError(
            f"links: {error} Check the URL, your login there and this machine's network, or try "
            "again later."
        )
    return ConfigError(f"links: {error}")


def find_files(patterns: Iterable[str]) -> list[str]:
    """Return the paths and URLs that patterns match, each once; raise ConfigError for none."""
    found = (each for pattern in patterns for each in _matches(pattern))
    return list(dict.fromkeys(found))


def _matches(pattern: str) -> list[str]:
    if "://" in pattern:
        return _remote_matches(pattern)
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        raise ConfigError(
            f"links: {pattern} is a folder; name the files in it, such as {pattern}/*.parquet."
        )
    found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files = [os.path.abspath(each) for each in found if os.path.isfile(each)]
    if not files:
        raise ConfigError(f"links: {pattern} matches no file.")
    return files


def _remote_matches(url: str) -> list[str]:
    if _LOGIN.match(url):
        raise ConfigError(
            "links: a URL with a password would be stored in the dataset; give the password to the "
            "storage's driver by its environment variables or configuration."
        )
    wild = "*[" if url.startswith(_WEB) else "*?["  # a query begins with "?"
    if not any(each in url for each in wild):
        return [url]
    try:
        with reading(url):
            files, path = _filesystem(url, "")
            names = sorted(files.glob(path))
    except TableError as error:
        raise unreadable(error) from error
    if not names:
        raise ConfigError(f"links: {url} matches no file.")
    return [str(files.unstrip_protocol(name)) for name in names]


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Raise TableError for what goes wrong while a table is read, whichever library says it."""
    try:
        yield
    except CahError:
        raise
    except FileNotFoundError as error:
        cause = error.__cause__ if url.startswith(_WEB) else None  # fsspec's, whatever happened
        status = getattr(cause, "status", 0)
        if cause is None or status in (404, 410):
            raise TableError(f"{url} does not exist.") from error
        said = f"the server answers with status {status}" if status else _first_line(cause)
        kind = TableError if status in (401, 403) else TableAway
        raise kind(f"{url} cannot be read: {said}.") from error
    except _DAMAGE as error:
        raise TableError(f"{url} is damaged, or not a table: {_first_line(error)}.") from error
    except ImportError as error:
        raise TableError(f"{url} needs a library: {_first_line(error)}.") from error
    except Exception as error:
        if is_disk_full(error):  # of what was read, which is written meanwhile
            raise
        kind = TableAway if "://" in url else TableError
        raise kind(f"{url} cannot be read: {_first_line(error)}.") from error


def _first_line(error: BaseException) -> str:
    said = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return str(said).strip().splitlines()[0][:200].rstrip(".")


def open_file(url: str, contact: str = "") -> BufferedReader:
    """Open a file that can be read from any offset; its errors are any library's."""
    if "://" not in url:
        return open(url, "rb")
    files, path = _filesystem(url, contact)
    file = files.open(path, "rb")
    if file.seekable():
        return BufferedReader(file)
    file.close()
    copy = _downloaded(url, contact, repr(sorted(files.info(path).items())))
    return BufferedReader(_Copy(os.dup(copy.fileno())))


@lru_cache(maxsize=1)
def _downloaded(url: str, contact: str, state: str) -> _Copy:
    """Return a copy of a file whose server serves no ranges; the last one stays.

    For tables in text are opened for each shard. ``state`` changes with the file.
    """
    files, path = _filesystem(url, contact)
    with files.open(path, "rb") as file:
        return _copied(file)


def _filesystem(url: str, contact: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    if not url.startswith(_WEB):
        try:
            return url_to_fs(url)  # type: ignore[no-any-return]
        except ValueError as error:
            raise TableError(f"{url} cannot be read: {_first_line(error)}.") from error
    is_sendable = contact and contact.isascii() and contact.isprintable()
    agent = f"cahlib/{__version__}" + (f" (+{contact})" if is_sendable else "")
    return url_to_fs(url, client_kwargs={"headers": {"User-Agent": agent}})  # type: ignore[no-any-return]


def unpacked(file: BufferedReader) -> BufferedReader:
    """Return a file as it is without gzip or zstd, by its first bytes; offsets are those within."""
    mark = file.read(4)
    file.seek(0)
    if mark.startswith(b"\x1f\x8b"):
        gunzip = partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_GZIP)
        return BufferedReader(_Unpacked(file, gunzip), 1 << 20)
    if mark == b"\x28\xb5\x2f\xfd":
        return BufferedReader(_Unpacked(file, zstd.ZstdDecompressor), 1 << 20)
    return file


def unpacked_copy(file: BufferedReader) -> BufferedReader:
    """Return a temporary file with what is packed in a file, for formats that begin at their end.

    Raise RunError if the disk of temporary files is full.
    """
    file.seek(0)
    return BufferedReader(_copied(unpacked(file)))


def _copied(file: Any) -> _Copy:
    with tempfile.TemporaryFile() as copy, folder_errors(Path(tempfile.gettempdir())):
        shutil.copyfileobj(file, copy, 1 << 20)
        copy.flush()
        return _Copy(os.dup(copy.fileno()))


class _Copy(RawIOBase):
    """A reader of a file that others read at the same time, each at an offset of its own."""

    def __init__(self, number: int) -> None:
        """Read the file with this descriptor, and close it in the end."""
        self._number, self._at = number, 0

    def fileno(self) -> int:
        return self._number

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._at, os.fstat(self._number).st_size)[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        read = os.preadv(self._number, [buffer], self._at)
        self._at += read
        return read

    def close(self) -> None:
        if not self.closed:
            os.close(self._number)
        super().close()


class _Unpacked(RawIOBase):
    """The content of a packed file, up to where it is cut off; the libraries' own lose the end.

    Reading raises EOFError there.
    """

    def __init__(self, file: BufferedReader, new: Callable[[], Any]) -> None:
        self._file, self._new = file, new
        self._unpacker, self._rest = new(), b""
        self._between = False  #: between two members

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._unpacker.eof:
                self._rest = self._unpacker.unused_data.lstrip(b"\0")
                self._unpacker, self._between = self._new(), True
            piece, self._rest = self._rest, b""
            if not piece and self._unpacker.needs_input and not (piece := self._file.read(_CHUNK)):
                if self._between:
                    return 0
                raise EOFError("it is cut off")
            self._between = False
            if found := self._unpacker.decompress(piece, len(buffer)):
                buffer[: len(found)] = found
                return len(found)


def read_ends(file: BufferedReader) -> tuple[bytes, str]:
    """Return a file's first 64 KiB, and 8 hex digits by its ends and size: it changes with them."""
    size = file.seek(0, SEEK_END)
    file.seek(max(0, size - END))
    tail = file.read(END)
    file.seek(0)
    head = file.read(END)
    file.seek(0)
    return head, sha256(b"%d " % size + head + tail).hexdigest()[:8]


def file_name(url: str) -> str:
    """Return the last part of a path or URL."""
    return Path(urlsplit(url).path if "://" in url else url).name
