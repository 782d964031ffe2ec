"""The files of a dataset, be it in a folder or at a URL that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cahlib.curate import sink
from cahlib.errors import CahError, ConfigError, RunError, is_full, no_space
from cahlib.retry import wait_asked

#: Stores without folders, where "making" the topmost would create and own a bucket.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}

#: Name and password in a URL: no business of messages.
_LOGIN = re.compile(r"(?<=://)[^/@]*@")


class Busy(RunError):
    """A place asks to be left alone for a while."""

    def __init__(self, text: str, wait: float) -> None:
        super().__init__(text)
        self.wait = wait  #: seconds; 0: it did not say for how long


@dataclass(frozen=True, slots=True)
class Files:
    """What lies below one folder or URL, by relative path with slashes.

    Every method raises RunError where the place cannot be reached.
    """

    fs: Any  #: an fsspec filesystem
    root: str
    place: str  #: as the user named it, without a password

    def path(self, name: str) -> str:
        """The path of a file as its filesystem wants it."""
        return f"{self.root}/{name}"

    def open(self, name: str) -> BinaryIO:
        with reaching(self.place):
            return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def read(self, name: str) -> bytes:
        with reaching(self.place):
            return cast(bytes, self.fs.cat_file(self.path(name)))

    def exists(self, name: str) -> bool:
        with reaching(self.place):
            return bool(self.fs.exists(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Put a small file there, whole or not at all."""
        if isinstance(self.fs, LocalFileSystem):
            sink.replace(Path(self.path(name)), data)
            return
        with reaching(self.place):
            self.make_folder(name)
            self.fs.pipe_file(self.path(name), data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with reaching(self.place), suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def make_folder(self, name: str) -> None:
        """Make the folder of a file, where there are folders."""
        protocol = self.fs.protocol
        protocols = {protocol} if isinstance(protocol, str) else {*protocol}
        if not protocols & _BUCKETS:
            self.fs.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)

    def sizes(self, folders: Iterable[str]) -> dict[str, int]:
        """Return the files in some folders and right below the root, with their bytes.

        It is the place's own word of now: a driver may keep an older listing.
        """
        self.fs.invalidate_cache()
        with reaching(self.place):
            found = self.fs.find(self.root, maxdepth=1, detail=True)
            for folder in folders:
                found |= self.fs.find(self.path(folder), detail=True)
        return {path[len(self.root) + 1 :]: info["size"] or 0 for path, info in found.items()}

    def names(self, folder: str) -> list[str]:
        """All files in a folder, in order; none if there is no such folder."""
        with reaching(self.place):
            found = self.fs.find(self.path(folder))
        return sorted(path[len(self.root) + 1 :] for path in found)


def files(place: str | Path) -> Files:
    """The files at a place; raises ConfigError for a URL that fsspec cannot serve."""
    if "://" not in str(place):
        return Files(LocalFileSystem(), Path(place).absolute().as_posix(), str(place))
    shown = _LOGIN.sub("", str(place))
    with reaching(shown):
        try:
            fs, root = fsspec.core.url_to_fs(str(place))
        except ImportError as error:
            package = getattr(error.__cause__, "name", None) or "a driver"
            raise ConfigError(
                f"output: {shown} needs {package}, which is not installed; type: "
                f"pip install {package}."
            ) from error
        except ValueError as error:
            raise ConfigError(f"output: {shown} cannot be used: {error}.") from error
    return Files(fs, root.rstrip("/"), shown)


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turn a driver's error into RunError; each driver has errors of its own, of any kind."""
    try:
        yield
    except CahError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()).rstrip(".")
        if is_full(error):
            raise no_space(place) from error
        text = f"{place} cannot be reached: {said} ({type(error).__name__})."
        if (wait := wait_asked(error)) is not None:
            raise Busy(text, wait) from error
        raise RunError(text) from error
