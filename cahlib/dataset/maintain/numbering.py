"""Number the tars of a dataset without gaps, so that brace lists name them all.

    images/00000.tar … images/00041.tar    for images/{00000..00041}.tar

A new tar has its shard's name. It is numbered when a command that holds the folder's lock ends; the
number is in the manifest, as the name of the file. Two machines that number at the same time would
use the same numbers, so tars that are uploaded, or fetched from a session elsewhere, keep the names
of their shards: these are unique whoever uploads them, and no supported storage renames under a
lock.

A tar is renamed like any change of a shard: the new manifest is on disk first, and
`cahlib.dataset.write.shard_writer.recover_interrupted` completes what was interrupted.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pyarrow as pa

from cahlib.core.errors import CahError, RunError
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset import description
from cahlib.dataset.description import find_description
from cahlib.dataset.layout import part_path, tar_number
from cahlib.dataset.manifest import ShardManifest, read_manifests, tar_path
from cahlib.dataset.write.shard_writer import ShardWriter, read_uids


def number_tars(folder: Path) -> None:
    """Give each tar of a folder the least free number; numbered ones move only to close gaps.

    Nobody else may write to the folder meanwhile. Datasets of layout 1 are left alone, and
    those where a committed shard has no sound manifest: it may have any of the numbers.
    """
    if RunDirectory(folder).session.exists() or description.layout_of(folder) in (None, 1):
        return
    try:
        every = list(read_manifests(folder))
    except RunError:
        return
    said = find_description(folder)
    if said and {*said.committed} - {each.shard.id for each in every}:
        return
    _remove_copies(folder, every)
    here = {each.shard.id: each for each in every if tar_path(each) and not each.place}
    has = {each.shard.id: n for each in every if (n := _number(each)) is not None}
    taken = {*has.values(), *(tar_number(f"images/{path.name}") for path in _tars(folder))}
    free = (n for n in count() if n not in taken)
    lacking = [id for id in here if id not in has]
    for id in lacking:
        _move(folder, here[id], f"images/{next(free):05}.tar")
    for id in sorted(here.keys() & has.keys(), key=lambda id: -has[id]):
        if (hole := next(free)) > has[id]:
            break
        _move(folder, here[id], f"images/{hole:05}.tar")


def has_numbered_tar(folder: Path) -> bool:
    """Return whether any tar of a folder is numbered."""
    return any(tar_number(f"images/{path.name}") is not None for path in _tars(folder))


def unnumber_tars(folder: Path) -> None:
    """Rename the tars of a folder after their shards again; nobody else may write to it."""
    for each in read_manifests(folder, damaged="skip"):
        if _number(each) is not None and not each.place:
            _move(folder, each, part_path("images", each.shard.id))


def _move(folder: Path, manifest: ShardManifest, name: str) -> None:
    """Rename a shard's tar; a missing one is left to `cah verify`."""
    old = tar_path(manifest)
    if old is None or not (folder / old).exists():
        return
    files = {name if path == old else path: stored for path, stored in manifest.files.items()}
    with ShardWriter(folder) as writer:
        writer.commit(replace(manifest, files=files))


def _remove_copies(folder: Path, every: Iterable[ShardManifest]) -> None:
    """Remove numbered tars that no manifest names, if other files have all of their pairs.

    A shard whose manifest was lost is done again, and its tar then gets another number.
    """
    named = {tar_path(each) for each in every}
    for path in _tars(folder):
        name = f"images/{path.name}"
        if name in named or tar_number(name) is None:
            continue
        try:
            uids = {uid for each in every for uid in read_uids(folder, each)}
            with tarfile.open(path) as tar:
                found = {member.name.partition(".")[0] for member in tar}
        except (CahError, pa.ArrowException, tarfile.TarError, OSError, KeyError, ValueError):
            continue  # it may not be a copy; `cah verify` reports the damage
        if found <= uids:
            path.unlink()


def _number(manifest: ShardManifest) -> int | None:
    return tar_number(tar_path(manifest) or "")


def _tars(folder: Path) -> list[Path]:
    return sorted((folder / "images").glob("*.tar"))
