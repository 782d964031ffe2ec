"""The files of a dataset, in a folder or at any URL that fsspec supports."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cahlib.core.atomic import write_file
from cahlib.core.errors import CahError, ConfigError, RunError, disk_full_error, is_disk_full
from cahlib.core.retry import requested_wait

#: Stores without folders, where "making" the topmost would create a bucket.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}

#: User name and password in a URL, kept out of messages.
_LOGIN = re.compile(r"(?<=://)[^/@]*@")

#: What listing a folder fails with where there is none.
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class StorageBusy(RunError):
    """A storage asks to wait before the next request."""

    def __init__(self, text: str, wait: float) -> None:
        super().__init__(text)
        self.wait = wait  #: seconds; 0 if it did not say


class UnreadableFile(RunError):
    """A file or folder of this machine cannot be read now, be it damaged or not."""


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """The files below one folder or URL, by relative path with slashes.

    Every method raises RunError if the place cannot be reached, and UnreadableFile for an existing
    file that cannot be read.
    """

    fs: Any  #: an fsspec filesystem
    root: str
    place: str  #: as the user named it, without a password

    def path(self, name: str) -> str:
        """Return the path of a file as its filesystem expects it."""
        return f"{self.root}/{name}"

    @property
    def folder(self) -> Path | None:
        """The folder, if it is on this machine."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def open(self, name: str) -> BinaryIO:
        with self.reading(name):
            return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def read(self, name: str) -> bytes:
        with self.reading(name):
            return cast(bytes, self.fs.cat_file(self.path(name)))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to before ``end``, fewer if the file ends."""
        with self.reading(name):
            data = cast(bytes, self.fs.cat_file(self.path(name), start=start, end=end))
        # a web server may ignore the range, and send all of the file
        return data if len(data) <= end - start else data[start:end]

    def exists(self, name: str) -> bool:
        """Return whether there is a file, not a folder, of this name."""
        with self.reading(name):
            try:
                if self.folder:
                    return Path(self.path(name)).is_file()
                return bool(self.fs.info(self.path(name))["type"] != "directory")
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG or isinstance(error, FileNotFoundError):
                    return False
                raise

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turn errors of reading a file or folder into those that all methods raise."""
        with storage_errors(self.place):
            try:
                yield
            except OSError as error:
                if self.folder is None:
                    raise
                cause = error.strerror or error
                raise UnreadableFile(f"{self.path(name)} cannot be read ({cause}).") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        if self.folder:
            write_file(Path(self.path(name)), data)
            return
        with storage_errors(self.place):
            self.make_folder(name)
            self.fs.pipe_file(self.path(name), data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with storage_errors(self.place), suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def make_folder(self, name: str) -> None:
        """Create the folder of a file, if the storage has folders."""
        protocol = self.fs.protocol
        protocols = {protocol} if isinstance(protocol, str) else {*protocol}
        if not protocols & _BUCKETS:
            self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)

    def sizes(self, folders: Iterable[str]) -> dict[str, int]:
        """Return the sizes in bytes of the files in some folders and in the root itself.

        A driver's cached listing is not used.
        """
        self.fs.invalidate_cache()
        found = dict(self._listed(self.root, deep=False))
        for folder in folders:
            found |= self._listed(self.path(folder))
        return {path[len(self.root) + 1 :]: size for path, size in found.items()}

    def folders(self) -> list[str]:
        """Return the names of the folders in the root; none if there is no root."""
        with self.reading(""):
            try:
                if self.folder:
                    names = os.listdir(self.folder)
                    return [each for each in names if os.path.isdir(self.path(each))]
                self.fs.invalidate_cache()
                entries = self.fs.ls(self.root, detail=True)
            except OSError as error:
                if isinstance(error, FileNotFoundError) or error.errno in _NO_FOLDER:
                    return []
                raise
        found = (each["name"].rstrip("/") for each in entries if each["type"] == "directory")
        return [path.rpartition("/")[2] for path in found if path != self.root]

    def names(self, folder: str) -> list[str]:
        """Return all files in a folder, sorted; none if there is no such folder."""
        return sorted(path[len(self.root) + 1 :] for path, _ in self._listed(self.path(folder)))

    def _listed(self, path: str, *, deep: bool = True) -> Iterator[tuple[str, int]]:
        """Yield the files in a folder, with their sizes in bytes.

        fsspec's own `find` returns nothing for a folder that cannot be listed.
        """
        with self.reading(path[len(self.root) + 1 :]):
            try:
                entries = self.fs.ls(path, detail=True)
            except FileNotFoundError:
                return
        for each in entries:
            name = each["name"].rstrip("/")
            if each["type"] == "directory":
                if deep and name != path:
                    yield from self._listed(name)
            elif self.folder is None or each["type"] == "file" or Path(name).is_file():
                yield name, each["size"] or 0


def files_at(place: str | Path) -> DatasetFiles:
    """Return the files at a place; raise ConfigError if fsspec does not support its URL."""
    if "://" not in str(place):
        return DatasetFiles(LocalFileSystem(), Path(place).absolute().as_posix(), str(place))
    shown = _LOGIN.sub("", str(place))
    with storage_errors(shown):
        try:
            fs, root = fsspec.core.url_to_fs(str(place))
        except ImportError as error:
            package = getattr(error.__cause__, "name", None) or "a driver"
            raise ConfigError(
                f"{shown} needs {package}, which is not installed; type: pip install {package}."
            ) from error
        except ValueError as error:
            raise ConfigError(f"{shown} cannot be used: {error}.") from error
    return DatasetFiles(fs, root.rstrip("/"), shown)


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn any error of a driver into RunError: each driver has exceptions of its own."""
    try:
        yield
    except CahError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()).rstrip(".")
        if is_disk_full(error):
            raise disk_full_error(place) from error
        text = f"{place} cannot be reached: {said} ({type(error).__name__})."
        if (wait := requested_wait(error)) is not None:
            raise StorageBusy(text, wait) from error
        raise RunError(text) from error
