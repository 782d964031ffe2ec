"""Read the images of an evaluation set: from a folder, tars, or Parquet files with bytes.

These are somebody else's files, so an image that cannot be read is counted, not trusted.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cahlib.core.errors import ConfigError

#: The names of files that are taken for images.
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .avif .bmp .gif .tif .tiff".split())
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
_TABLE = ".parquet"

#: The largest image that is read, and rows of a table at a time.
_LARGEST, _ROWS = 64 << 20, 64


class NamedImage(NamedTuple):
    """A file that should be an image."""

    name: str
    data: bytes | None  #: None if it cannot be read or is too large


def holds_images(path: Path) -> bool:
    """Return whether the images of a path can be read: a folder, or a file of a known kind."""
    return path.is_dir() or _kind(path) != ""


def images_of(path: Path) -> Iterator[NamedImage]:
    """Yield the images in a folder or a file; raise ConfigError if a file is damaged."""
    if not path.is_dir():
        yield from _of_file(path)
        return
    for file in sorted(each for each in path.rglob("*") if _kind(each) and each.is_file()):
        # tables beside images are often labels
        if _kind(file) != "table" or _columns(file):
            yield from _of_file(file)


def _kind(path: Path) -> str:
    name = path.name.lower()
    if PurePosixPath(name).suffix in IMAGE_SUFFIXES:
        return "image"
    return "tar" if name.endswith(_TARS) else "table" if name.endswith(_TABLE) else ""


def _of_file(path: Path) -> Iterator[NamedImage]:
    kind = _kind(path)
    try:
        if kind == "tar":
            yield from _of_tar(path)
        elif kind == "table":
            yield from _of_table(path)
        else:
            yield NamedImage(str(path), _bytes_of(path))
    except (tarfile.TarError, pa.ArrowException, EOFError, OSError) as error:
        said = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
        raise ConfigError(f"against: {path} cannot be read: {said:.200}.") from error


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.stat().st_size <= _LARGEST else None
    except OSError:
        return None


def _of_tar(path: Path) -> Iterator[NamedImage]:
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            if (
                not member.isfile()
                or PurePosixPath(member.name.lower()).suffix not in IMAGE_SUFFIXES
            ):
                continue
            file = tar.extractfile(member) if member.size <= _LARGEST else None
            yield NamedImage(f"{path}, {member.name}", file.read() if file else None)


def _columns(path: Path) -> list[str]:
    """Return the columns of a table that hold bytes, or structs of bytes and a path."""
    try:
        schema = pq.ParquetFile(path).schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"against: {path} cannot be read as Parquet: {error}.") from error
    return [
        field.name
        for field in schema
        if _is_binary(field.type)
        or (pa.types.is_struct(field.type) and "bytes" in {each.name for each in field.type})
    ]


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _of_table(path: Path) -> Iterator[NamedImage]:
    columns = _columns(path)
    if not columns:
        raise ConfigError(
            f"against: {path} has no column of images, which are bytes or structs with bytes."
        )
    row = 0
    for batch in pq.ParquetFile(path).iter_batches(_ROWS, columns=columns, use_threads=False):
        for number in range(batch.num_rows):
            for column in columns:
                value = batch[column][number].as_py()
                data = value.get("bytes") if isinstance(value, dict) else value
                if isinstance(data, bytes) and len(data) <= _LARGEST:
                    yield NamedImage(f"{path}, row {row}", data)
                elif value is not None:
                    yield NamedImage(f"{path}, row {row}", None)
            row += 1
