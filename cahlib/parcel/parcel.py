"""A parcel: the images of one shard in one tar, sealed by its manifest.

The tar (``<shard>.tar``, WebDataset's layout: ``<uid>.<format>`` and ``<uid>.json`` of each image)
grows while images arrive, under a temporary name. The manifest (``<shard>.json``) is renamed into
place last: without it, whatever lies there is rubbish. Reading trusts neither of the two, for they
may come from another machine. It knows no network and nothing of what is done with images.
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
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeAlias

import msgspec

from cahlib.errors import ShardError
from cahlib.lists import md5
from cahlib.parcel.tar import TarError, TarMember, TarWriter, parcel_disk, read_members
from cahlib.records import Candidate, Evidence, Image, OptOut, Parcel, Shard, Tally

#: What is written and read; another layout gets another number.
_LAYOUT = 1

_NAME = re.compile(r"([0-9a-f]{32})\.(jpg|png|webp|avif)")
_PART = re.compile(r"[0-9a-f]{8}(\.json)?\.part")
#: Bytes that may be said about an image: a million characters of raw text, which is what settings
#: allow at most, all of them escaped, and the rest.
_MAX_TEXT = 8_000_000
_PIECE = 1 << 20

#: A length that a dataset's columns can hold.
_Pixels: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]

#: What decoding raises about strangers' JSON.
_NONSENSE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Sample(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What ``<uid>.json`` holds: an image without its bytes."""

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
    """What ``<shard>.json`` holds: a parcel without its place."""

    layout: int
    shard: Shard
    sha256: str
    size: int
    images: int
    tally: dict[str, Any]
    optouts: tuple[OptOut, ...]
    started: float
    finished: float
    versions: dict[str, str]
    silent: tuple[str, ...] = ()
    cut: int = 0


class _Place(NamedTuple):
    """Where an image and what is said about it lie in the tar."""

    position: int  #: in the shard
    data: TarMember
    text: TarMember


def write_parcel(
    images: Iterable[Image],
    shard: Shard,
    folder: Path,
    *,
    tally: Tally,
    evidence: Evidence | None = None,
    clock: Callable[[], float] = time.time,
) -> Parcel:
    """Write images into a parcel as they come; ``tally`` and ``evidence`` fill up meanwhile.

    What lay there for this shard is replaced. If ``images`` raises, or the writing fails, nothing
    is left: RunError where the disk is full, ShardError for other trouble with it.
    """
    delete_parcel(folder, shard)
    evidence = evidence or Evidence()
    started = clock()
    mark = secrets.token_hex(4)  # a lost worker may still be writing the same shard
    tar, manifest = (folder / f"{shard.id}.{mark}{kind}.part" for kind in ("", ".json"))
    try:
        with TarWriter(tar) as writer:
            count = sum(_add(writer, image) for image in images)
        parcel = Parcel(
            shard=shard,
            path=folder / f"{shard.id}.tar",
            sha256=writer.sha256,
            size=writer.size,
            images=count,
            tally=tally,
            optouts=tuple(evidence.optouts),
            silent=tuple(evidence.silent),
            cut=evidence.cut,
            started=started,
            finished=clock(),
            versions=_versions(),
        )
        with parcel_disk(folder):
            _write(manifest, _told(parcel))
            tar.rename(parcel.path)
            manifest.rename(_manifest(folder, shard))
            _sync(folder)
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
    """The sealed parcel of a shard, or None where there is none or only rubbish."""
    try:
        told = msgspec.json.decode(_manifest(folder, shard).read_bytes(), type=_Manifest)
        tally = Tally.from_dict(told.tally)
        path = folder / f"{shard.id}.tar"
        if told.layout != _LAYOUT or told.shard != shard or path.stat().st_size != told.size:
            return None
    except (OSError, KeyError, TypeError, AttributeError, *_NONSENSE):
        return None
    return Parcel(
        shard=shard,
        path=path,
        sha256=told.sha256,
        size=told.size,
        images=told.images,
        tally=tally,
        optouts=told.optouts,
        started=told.started,
        finished=told.finished,
        versions=told.versions,
        silent=told.silent,
        cut=told.cut,
    )


def delete_parcel(folder: Path, shard: Shard) -> None:
    """Remove whatever lies there for a shard, the manifest first."""
    with parcel_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _manifest(folder, shard).unlink(missing_ok=True)
        (folder / f"{shard.id}.tar").unlink(missing_ok=True)
        for path in folder.glob("*.part"):
            if _PART.fullmatch(path.name.removeprefix(f"{shard.id}.")):
                path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, done: Iterable[Shard] = ()) -> None:
    """Remove what was never sealed, and parcels of shards that are done; nobody may be writing.

    Raises OSError: trouble with the folder is the run's, not a shard's.
    """
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.part"):
        path.unlink(missing_ok=True)
    served = {shard.id for shard in done}
    for path in folder.iterdir():
        if path.stem in served:
            path.unlink(missing_ok=True)


def check_parcel(parcel: Parcel) -> None:
    """Compare the tar with its checksum; raises ShardError if they differ."""
    digest = sha256()
    with _reading(parcel) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    if digest.hexdigest() != parcel.sha256:
        raise ShardError(f"Parcel {parcel.path.name} is damaged: its checksum does not fit.")


def read_images(parcel: Parcel) -> Iterator[Image]:
    """The images of a parcel that `check_parcel` let pass, in the order of their positions.

    They may have arrived in any order. Raises ShardError for a tar that holds anything else.
    """
    with _reading(parcel) as file:
        places = sorted(_places(parcel, file))
        if len({place.position for place in places}) != parcel.images:
            raise _bad(parcel, "does not hold the images that its manifest counts")
        for place in places:
            yield _image(parcel, file, place)


def _add(writer: TarWriter, image: Image) -> int:
    writer.add(f"{image.candidate.uid}.{image.format}", image.data)
    writer.add(f"{image.candidate.uid}.json", _text(image))
    return 1


def _text(image: Image) -> bytes:
    text = msgspec.json.encode(
        _Sample(**{name: getattr(image, name) for name in _Sample.__struct_fields__})
    )
    if len(text) > _MAX_TEXT:  # nobody would read it
        raise ShardError(f"More is said about {image.candidate.url:.200} than a parcel may hold.")
    return text


def _told(parcel: Parcel) -> bytes:
    manifest = _Manifest(
        layout=_LAYOUT,
        shard=parcel.shard,
        sha256=parcel.sha256,
        size=parcel.size,
        images=parcel.images,
        tally=parcel.tally.as_dict(),
        optouts=parcel.optouts,
        started=parcel.started,
        finished=parcel.finished,
        versions=dict(parcel.versions),
        silent=parcel.silent,
        cut=parcel.cut,
    )
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _versions() -> Mapping[str, str]:
    libraries = {name: version(name) for name in ("cahlib", "aiohttp", "pillow")}
    return {**libraries, "python": platform.python_version()}


def _manifest(folder: Path, shard: Shard) -> Path:
    return folder / f"{shard.id}.json"


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _reading(parcel: Parcel) -> Iterator[BinaryIO]:
    try:
        with parcel.path.open("rb") as file:
            yield file
    except OSError as error:
        raise _bad(parcel, f"cannot be read ({error.strerror})") from error
    except TarError as error:
        raise _bad(parcel, str(error)) from error


def _bad(parcel: Parcel, what: str) -> ShardError:
    return ShardError(f"Parcel {parcel.path.name} {what}; its shard has to be scraped again.")


def _places(parcel: Parcel, file: BinaryIO) -> Iterator[_Place]:
    """Where everything is: image and text by turns, both under the name of one candidate."""
    for data, text in _by_twos(parcel, read_members(file)):
        uid, _, format = data.name.partition(".")
        if not _NAME.fullmatch(data.name) or text.name != f"{uid}.json":
            raise _bad(parcel, "holds files of other names than it should")
        candidate = _sample(parcel, file, text).candidate
        if not candidate.uid == uid == md5(candidate.url + candidate.text).hex():
            raise _bad(parcel, "holds an image under another's name")
        yield _Place(candidate.position, data, text)


def _by_twos(parcel: Parcel, found: Iterator[TarMember]) -> Iterator[tuple[TarMember, TarMember]]:
    for data in found:
        text = next(found, None)
        if text is None:
            raise _bad(parcel, "holds an image of which nothing is said")
        yield data, text


def _sample(parcel: Parcel, file: BinaryIO, text: TarMember) -> _Sample:
    if text.size > _MAX_TEXT:
        raise _bad(parcel, "says more about an image than can be")
    file.seek(text.offset)
    try:
        return msgspec.json.decode(file.read(text.size), type=_Sample)
    except _NONSENSE as error:
        raise _bad(parcel, f"says nonsense about an image ({error})") from error


def _image(parcel: Parcel, file: BinaryIO, place: _Place) -> Image:
    sample = _sample(parcel, file, place.text)
    file.seek(place.data.offset)
    return Image(
        data=file.read(place.data.size),
        format=place.data.name.partition(".")[2],
        **msgspec.structs.asdict(sample),
    )
