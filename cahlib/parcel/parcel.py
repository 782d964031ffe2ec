"""A parcel: the images of one shard in one tar, committed by its manifest.

The tar (``<shard>.tar``) grows while images arrive, under a temporary name: ``<uid>.<format>`` and,
if there is one, ``<uid>.thumb`` of each; last ``metadata.jsonl``, with a line per image in the
order of their positions, so that a reader parses one file once, and the candidates' outcomes
(`cahlib.parcel.outcomes`). The manifest (``<shard>.json``) is renamed into place last; without it,
a tar does not count. Neither file is trusted when read, since they may come from another machine.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cahlib.core.errors import ShardError
from cahlib.core.records import Evidence, Image, OptOut, Outcome, Parcel, Shard, Stats
from cahlib.parcel.layout1 import read_layout1
from cahlib.parcel.metadata import (
    INVALID_JSON,
    MAX_METADATA,
    ImageEntry,
    ImageMetadata,
    decode_metadata,
)
from cahlib.parcel.outcomes import decode_outcomes
from cahlib.parcel.tar import TarError, TarWriter, parcel_disk

#: Version of the layout; in the first, metadata follows each image (`cahlib.parcel.layout1`).
_LAYOUT = 2

_PART = re.compile(r"[0-9a-f]{8}(\.json)?\.part")
_CHUNK = 1 << 20


class _Manifest(msgspec.Struct, kw_only=True, frozen=True):
    """The content of ``<shard>.json``: a parcel without its path."""

    layout: int
    shard: Shard
    sha256: str
    size: int
    images: int
    stats: dict[str, Any] = msgspec.field(name="tally")
    optouts: tuple[OptOut, ...]
    started: float
    finished: float
    versions: dict[str, str]
    silent: tuple[str, ...] = ()
    cut: int = 0
    index: int = 0
    outcomes: int = 0


_manifest_decoder = msgspec.json.Decoder(_Manifest)
_entry_decoder = msgspec.json.Decoder(ImageEntry)

#: The fields that a manifest and its parcel have in common.
_COMMON_FIELDS = [name for name in _Manifest.__struct_fields__ if name not in ("layout", "stats")]


def write_parcel(
    images: Iterable[Image],
    shard: Shard,
    folder: Path,
    *,
    stats: Stats,
    evidence: Evidence | None = None,
    clock: Callable[[], float] = time.time,
) -> Parcel:
    """Write images into a parcel as they arrive, while ``stats`` and ``evidence`` fill up.

    An older parcel of the shard is replaced. If ``images`` raises or writing fails, nothing is
    left. Raise RunError if the disk is full, ShardError if it fails otherwise.
    """
    delete_parcel(folder, shard)
    evidence = evidence or Evidence()
    started = clock()
    mark = secrets.token_hex(4)  # a lost worker may still be writing this shard
    tar, manifest = (folder / f"{shard.id}.{mark}{kind}.part" for kind in ("", ".json"))
    try:
        with TarWriter(tar) as writer:
            entries = sorted(_add_image(writer, image) for image in images)
            index = writer.add("metadata.jsonl", b"".join(line for _, line in entries))
            log = evidence.outcomes
            outcomes = writer.add("outcomes.jsonl.gz", log.packed()) if log else 0
        parcel = Parcel(
            shard=shard,
            path=folder / f"{shard.id}.tar",
            sha256=writer.sha256,
            size=writer.size,
            images=len(entries),
            index=index,
            outcomes=outcomes,
            stats=stats,
            optouts=tuple(evidence.optouts),
            silent=tuple(evidence.silent),
            cut=evidence.cut,
            started=started,
            finished=clock(),
            versions=_versions(),
        )
        with parcel_disk(folder):
            _write_synced(manifest, _manifest_json(parcel))
            tar.rename(parcel.path)
            manifest.rename(_manifest_path(folder, shard))
            _sync_folder(folder)
    except BaseException:
        for part in (tar, manifest):
            with suppress(OSError):
                part.unlink(missing_ok=True)
        raise
    finally:
        if close := getattr(images, "close", None):
            close()
    return parcel


def find_parcel(folder: Path, shard: Shard) -> Parcel | None:
    """Return the committed parcel of a shard, or None if there is none."""
    try:
        manifest = _manifest_decoder.decode(_manifest_path(folder, shard).read_bytes())
        stats = Stats.from_dict(manifest.stats)
        path = folder / f"{shard.id}.tar"
        if (
            manifest.layout != (_LAYOUT if manifest.index else 1)
            or manifest.shard != shard
            or path.stat().st_size != manifest.size
        ):
            return None
    except (OSError, KeyError, TypeError, AttributeError, *INVALID_JSON):
        return None
    return Parcel(path=path, stats=stats, **_fields(manifest, _COMMON_FIELDS))


def delete_parcel(folder: Path, shard: Shard) -> None:
    """Delete all files of a shard's parcel, the manifest first."""
    with parcel_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _manifest_path(folder, shard).unlink(missing_ok=True)
        (folder / f"{shard.id}.tar").unlink(missing_ok=True)
        for path in folder.glob("*.part"):
            if _PART.fullmatch(path.name.removeprefix(f"{shard.id}.")):
                path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, done: Iterable[Shard] = ()) -> None:
    """Delete uncommitted files, and parcels of finished shards; nothing may be writing.

    Raise OSError if the folder fails, as that concerns the run rather than a shard.
    """
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.part"):
        path.unlink(missing_ok=True)
    served = {shard.id for shard in done}
    for path in folder.iterdir():
        if path.stem in served:
            path.unlink(missing_ok=True)


def check_parcel(parcel: Parcel) -> None:
    """Compare the tar with its checksum; raise ShardError if they differ."""
    digest = sha256()
    with _opened(parcel) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    if digest.hexdigest() != parcel.sha256:
        raise ShardError(f"Parcel {parcel.path.name} is damaged: its checksum does not match.")


def read_images(parcel: Parcel, *, trusted: bool = True) -> Iterator[Image]:
    """Yield the images of a checked parcel, in the order of their positions.

    A stranger's parcel is not ``trusted``: its thumbs, and what it says of looks, are not used.
    Raise ShardError for a tar that contains anything else.
    """
    with _opened(parcel) as file:
        if not parcel.index:
            yield from read_layout1(parcel, file)
            return
        if not 0 < parcel.index < parcel.size:
            raise TarError("has its metadata elsewhere")
        file.seek(parcel.index)
        before, read = -1, 0
        for _ in range(parcel.images):
            entry = decode_metadata(file.readline(MAX_METADATA), _entry_decoder)
            files = entry.data, entry.thumb or (0, 0)
            read += sum(size for _, size in files)
            if read > parcel.size or any(at + size > parcel.index for at, size in files):
                raise TarError("has an image that lies elsewhere")
            if entry.candidate.position <= before:
                raise TarError("does not have its images in order")
            before = entry.candidate.position
            yield _image(entry, [os.pread(file.fileno(), size, at) for at, size in files], trusted)


def unpack_outcomes(parcel: Parcel) -> Iterator[Outcome]:
    """Yield what became of a checked parcel's candidates at the scraper; nothing if it is unknown.

    Raise ShardError for what is not so.
    """
    if not parcel.outcomes:
        return
    with _opened(parcel) as file:
        if not parcel.index < parcel.outcomes < parcel.size:
            raise TarError("has its outcomes elsewhere")
        file.seek(parcel.outcomes)
        yield from decode_outcomes(file, parcel)


def _add_image(writer: TarWriter, image: Image) -> tuple[int, bytes]:
    """Add the files of an image; return its position and its line of metadata."""
    uid = image.candidate.uid
    data = writer.add(f"{uid}.{image.format}", image.data), len(image.data)
    thumb = (writer.add(f"{uid}.thumb", image.thumb), len(image.thumb)) if image.thumb else None
    fields = _fields(image, (*ImageMetadata.__struct_fields__, "format", "phash", "chroma"))
    line = msgspec.json.encode({**fields, "data": data, "thumb": thumb}) + b"\n"
    if len(line) > MAX_METADATA:  # readers would reject it
        raise ShardError(f"The metadata of {image.candidate.url:.200} is too long for a parcel.")
    return image.candidate.position, line


def _image(entry: ImageEntry, files: Sequence[bytes], trusted: bool) -> Image:
    return Image(
        data=files[0],
        format=entry.format,
        phash=entry.phash if trusted else "",
        chroma=entry.chroma if trusted else "",
        thumb=files[1] if trusted else b"",
        **_fields(entry, ImageMetadata.__struct_fields__),
    )


def _manifest_json(parcel: Parcel) -> bytes:
    values = _fields(parcel, _COMMON_FIELDS)
    values |= {"layout": _LAYOUT, "tally": parcel.stats.as_dict()}
    return msgspec.json.format(msgspec.json.encode(values), indent=1) + b"\n"


def _fields(record: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def _versions() -> Mapping[str, str]:
    libraries = {name: version(name) for name in ("cahlib", "aiohttp", "pillow")}
    return {**libraries, "python": platform.python_version()}


def _manifest_path(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.id}.json"


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _opened(parcel: Parcel) -> Iterator[BinaryIO]:
    try:
        with parcel.path.open("rb") as file:
            yield file
    except OSError as error:
        raise _damaged(parcel, f"cannot be read ({error.strerror})") from error
    except TarError as error:
        raise _damaged(parcel, str(error)) from error


def _damaged(parcel: Parcel, what: str) -> ShardError:
    return ShardError(f"Parcel {parcel.path.name} {what}; its shard has to be scraped again.")
