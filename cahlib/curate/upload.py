"""Brings a sealed shard to a URL: its files first, its seal last, each one checked there.

A shard at the URL is in the dataset when its seal is, as on this machine. What an interrupted
upload left is overwritten by the next, and a shard that was changed here replaces the one that is
there. It does not know where a run stands.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from fsspec.implementations.local import LocalFileSystem

from cahlib.curate import seal, sink
from cahlib.curate.files import Files, files, reaching
from cahlib.curate.seal import Sealed
from cahlib.errors import ConfigError, RunError

_log = logging.getLogger(__name__)

#: What tells of the whole dataset, and is made anew each time.
PAGES = ("report.html", "README.md")

#: Seconds before each new try.
_PAUSES = (1, 4, 16, 64)

#: Stores without folders, where "making" the topmost would create and own a bucket.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss"}

T = TypeVar("T")
Sleep = Callable[[float], None]


def check(url: str, folder: Path) -> None:
    """See whether a dataset can be brought from its folder to a URL. Raises ConfigError."""
    trial = f"{seal.FOLDER}/.trial"
    try:
        there = files(url)
        if isinstance(there.fs, LocalFileSystem) and Path(there.root).resolve() == folder.resolve():
            raise ConfigError(
                f"output: {url} is the folder that it would be brought from; give it as a folder, "
                f"{there.root}, instead of a URL."
            )
        with reaching(there.place):
            _make_folder(there, trial)
            there.fs.pipe_file(there.path(trial), b"trial")
            there.fs.rm_file(there.path(trial))
    except RunError as error:
        raise ConfigError(f"output: {error}") from error


def upload(
    sealed: Sealed, folder: Path, url: str, *, keep_local: bool = True, sleep: Sleep = time.sleep
) -> None:
    """Bring a shard from the folder of its dataset to a URL; one that is there stays as it is.

    Without ``keep_local`` its files are removed here once they are there; its seal stays, and says
    where they are. Raises RunError when all tries failed.
    """
    name = seal.name(sealed.shard.id)
    if not sealed.place and not _tried(partial(_is_there, folder, url, name), sleep):
        for path in sealed.files:
            _tried(partial(_bring, folder, url, path), sleep)
        _tried(partial(_remove_others, sealed, url), sleep)
        _tried(partial(_bring, folder, url, name), sleep)
    if not keep_local:
        _let_go(replace(sealed, place=sealed.place or url), folder)


def elsewhere(url: str, known: Collection[str]) -> Iterator[Sealed]:
    """The shards at a URL, those of ``known`` ids excepted; each says where its files are.

    What is not whole is left out, and told of: a machine that was lost had not brought all of it,
    or the drive that the URL is on has not.
    """
    there, lacking = files(url), 0
    for path in there.names(seal.FOLDER):
        if not path.endswith(".json") or path.rpartition("/")[2][:-5] in known:
            continue
        if found := _whole(there, path):
            yield replace(found, place=url)
        else:
            lacking += 1
    if lacking:
        place = there.place
        _log.warning("Shards at %s that are not whole, and are done again: %d.", place, lacking)


def pages(folder: Path, url: str, *, sleep: Sleep = time.sleep) -> None:
    """Bring what is made anew at the end of a run, the report and the card, to a URL."""
    for path in PAGES:
        _tried(partial(_bring, folder, url, path), sleep)


def _tried(action: Callable[[], T], sleep: Sleep) -> T:
    """What an action answers at last; raises RunError when it failed every time."""
    for pause in _PAUSES:
        try:
            return action()
        except RunError:
            sleep(pause)
    return action()


def _whole(there: Files, path: str) -> Sealed | None:
    """What a seal says, if it is whole and each file that it names is there in its size."""
    try:
        found = seal.unpacked(there.read(path))
    except ValueError:
        return None
    with reaching(there.place):
        for name, stored in found.files.items():
            if not there.exists(name) or there.fs.size(there.path(name)) != stored.size:
                return None
    return found


def _is_there(folder: Path, url: str, path: str) -> bool:
    there = files(url)
    return there.exists(path) and there.read(path) == (folder / path).read_bytes()


def _remove_others(sealed: Sealed, url: str) -> None:
    """Remove what a shard had at the URL before it was changed, and has no more."""
    there, name = files(url), seal.name(sealed.shard.id)
    try:
        before = seal.unpacked(there.read(name)) if there.exists(name) else sealed
    except ValueError:  # an upload was cut off in the seal, behind which there is nothing old
        return
    with reaching(there.place):
        for path in before.files.keys() - sealed.files.keys():
            if there.exists(path):
                there.fs.rm_file(there.path(path))


def _bring(folder: Path, url: str, path: str) -> None:
    """Put a file there, and see whether it is there as it is here."""
    there = files(url)
    with reaching(there.place):
        _make_folder(there, path)
        there.fs.put_file(str(folder / path), there.path(path))
        _compare(folder / path, there, path)


def _make_folder(there: Files, path: str) -> None:
    """Make the folder of a file, where there are folders."""
    protocols = {there.fs.protocol} if isinstance(there.fs.protocol, str) else {*there.fs.protocol}
    if not protocols & _BUCKETS:
        there.fs.makedirs(there.path(path).rpartition("/")[0], exist_ok=True)


def _compare(source: Path, there: Files, path: str) -> None:
    """Raise OSError where a file differs from its source.

    S3's ETag is the md5 of an object that came in one piece and is not encrypted with a key of its
    own: then nothing needs to be fetched back, which costs money. Any other store is read.
    """
    there.fs.invalidate_cache()
    with open(source, "rb") as file:
        sent = _md5(file)
    if str(there.fs.info(there.path(path)).get("ETag", "")).strip('"') == sent:
        return
    with there.open(path) as file:
        if _md5(file) != sent:
            raise OSError(f"{path} did not arrive as it was sent")


def _md5(file: BinaryIO) -> str:
    digest = hashlib.md5()
    while data := file.read(1 << 20):
        digest.update(data)
    return digest.hexdigest()


def _let_go(sealed: Sealed, folder: Path) -> None:
    """Remove a shard's files here; its seal first says where they are now."""
    sink.replace(folder / seal.name(sealed.shard.id), seal.packed(sealed))
    for path in sealed.files:
        with sink.disk(folder / path):
            (folder / path).unlink(missing_ok=True)
