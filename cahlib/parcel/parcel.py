"""A parcel: the images of one shard in one tar, committed by its manifest.

The tar (``<shard>.tar``, in WebDataset's layout: ``<uid>.<format>`` and ``<uid>.json`` of each
image) grows while images arrive, under a temporary name. The manifest (``<shard>.json``) is renamed
into place last; without it, a tar does not count. Neither file is trusted when read, since they may
come from another machine.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeAlias

import msgspec

from cahlib.core.errors import ShardError
from cahlib.core.lists import md5
from cahlib.core.records import Candidate, Evidence, Image, OptOut, Parcel, Shard, Stats
from cahlib.parcel.tar import TarError, TarMember, TarWriter, parcel_disk, read_members

#: Version of the layout.
_LAYOUT = 1

_NAME = re.compile(r"([0-9a-f]{32})\.(jpg|png|webp|avif)")
_PART = re.compile(r"[0-9a-f]{8}(\.json)?\.part")
#: Bytes of an image's JSON: a million characters of raw text, the most that settings allow, all of
#: them escaped, and the rest.
_MAX_METADATA = 8_000_000
_CHUNK = 1 << 20

#: A length that fits a dataset's columns.
_Pixels: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]

#: What decoding raises for untrusted JSON.
_INVALID_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _ImageMetadata(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The content of ``<uid>.json``: an image without its bytes."""

    candidate: Candidate
    width: _Pixels
    height: _Pixels
    original_width: _Pixels
    original_height: _Pixels
    md5: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    sha1: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40}\Z")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    robots: str


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


#: The fields that a manifest and its parcel have in common.
_COMMON_FIELDS = [name for name in _Manifest.__struct_fields__ if name not in ("layout", "stats")]


class _Place(NamedTuple):
    """Where an image and its JSON are in the tar."""

    position: int  #: of its candidate in the shard
    data: TarMember
    text: TarMember


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
            count = sum(_add_image(writer, image) for image in images)
        parcel = Parcel(
            shard=shard,
            path=folder / f"{shard.id}.tar",
            sha256=writer.sha256,
            size=writer.size,
            images=count,
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
        manifest = msgspec.json.decode(_manifest_path(folder, shard).read_bytes(), type=_Manifest)
        stats = Stats.from_dict(manifest.stats)
        path = folder / f"{shard.id}.tar"
        if (
            manifest.layout != _LAYOUT
            or manifest.shard != shard
            or path.stat().st_size != manifest.size
        ):
            return None
    except (OSError, KeyError, TypeError, AttributeError, *_INVALID_JSON):
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


def read_images(parcel: Parcel) -> Iterator[Image]:
    """Yield the images of a checked parcel, in the order of their positions.

    Raise ShardError for a tar that contains anything else.
    """
    with _opened(parcel) as file:
        places = sorted(_places(parcel, file))
        if len({place.position for place in places}) != parcel.images:
            raise _damaged(parcel, "does not have the images that its manifest counts")
        for place in places:
            yield _image(parcel, file, place)


def _add_image(writer: TarWriter, image: Image) -> int:
    writer.add(f"{image.candidate.uid}.{image.format}", image.data)
    writer.add(f"{image.candidate.uid}.json", _metadata(image))
    return 1


def _metadata(image: Image) -> bytes:
    text = msgspec.json.encode(_fields(image, _ImageMetadata.__struct_fields__))
    if len(text) > _MAX_METADATA:  # readers would reject it
        raise ShardError(f"The metadata of {image.candidate.url:.200} is too long for a parcel.")
    return text


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


def _places(parcel: Parcel, file: BinaryIO) -> Iterator[_Place]:
    """Yield the places of images and JSON, which alternate and share the name of a candidate."""
    files = read_members(file)
    for data, text in zip_longest(files, files):
        if text is None:
            raise _damaged(parcel, "has an image without metadata")
        uid, _, format = data.name.partition(".")
        if not _NAME.fullmatch(data.name) or text.name != f"{uid}.json":
            raise _damaged(parcel, "has files with unexpected names")
        candidate = _read_metadata(parcel, file, text).candidate
        if not candidate.uid == uid == md5(candidate.url + candidate.text).hex():
            raise _damaged(parcel, "has an image under another's name")
        yield _Place(candidate.position, data, text)


def _read_metadata(parcel: Parcel, file: BinaryIO, text: TarMember) -> _ImageMetadata:
    if text.size > _MAX_METADATA:
        raise _damaged(parcel, "has too long metadata of an image")
    file.seek(text.offset)
    try:
        return msgspec.json.decode(file.read(text.size), type=_ImageMetadata)
    except _INVALID_JSON as error:
        raise _damaged(parcel, f"has invalid metadata of an image ({error})") from error


def _image(parcel: Parcel, file: BinaryIO, place: _Place) -> Image:
    metadata = _read_metadata(parcel, file, place.text)
    file.seek(place.data.offset)
    return Image(
        data=file.read(place.data.size),
        format=place.data.name.partition(".")[2],
        **msgspec.structs.asdict(metadata),
    )
