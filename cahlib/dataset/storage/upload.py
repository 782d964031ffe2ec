"""Brings sealed shards to a URL: their files first, their seals last, each one checked there.

A shard at the URL is in the dataset when its seal is, as on this machine. What an interrupted
upload left is overwritten by the next, and a shard that was changed here replaces the one that is
there. It does not know where a run stands.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from cahlib.atomic import write_file
from cahlib.config import Output
from cahlib.dataset.checksummed_json import encode_checksummed
from cahlib.dataset.description import (
    DESCRIPTION_FILE,
    commit_shards,
    find_description,
    merge_descriptions,
)
from cahlib.dataset.file_names import require_writable
from cahlib.dataset.inventory import Inventory
from cahlib.dataset.layout import MANIFESTS, PAGES, tar_number
from cahlib.dataset.manifest import (
    ShardManifest,
    decode_manifest,
    encode_manifest,
    manifest_path,
    read_manifests,
    tar_path,
)
from cahlib.dataset.storage.files import DatasetFiles, StorageBusy, files_at, storage_errors
from cahlib.dataset.storage.hub import COMMIT_INTERVAL, HubRepository, LocalContent, find_repository
from cahlib.dataset.tar_index import TAR_CARD_FILE, encode_tar_sizes, read_tar_sizes
from cahlib.errors import CahError, ConfigError, RunError, disk_errors, is_full
from cahlib.lock import busy, is_held

_log = logging.getLogger(__name__)

#: Seconds before each new try.
_PAUSES = (1, 4, 16, 64)

#: Seconds that a busy place is waited for in all; and each time, if it does not say for how long.
_PATIENCE, _BUSY = 7200.0, 60.0

#: Shards in one commit: it names some six files of each, and the hub takes 25,000 files.
_MOST = 500

_T = TypeVar("_T")
_Sleep = Callable[[float], None]


def check_destination(url: str, folder: Path) -> None:
    """See whether a dataset can be brought from its folder to a URL. Raises ConfigError."""
    trial = f"{MANIFESTS}/.trial"
    try:
        there = files_at(url)
        if there.folder and there.folder.resolve() == folder.resolve():
            raise ConfigError(
                f"output: {url} is the folder that it would be brought from; give it as a folder, "
                f"{there.root}, instead of a URL."
            )
        if repository := find_repository(there):
            repository.check(trial)
            return
        if there.folder:
            require_writable(there.folder)
            if is_held(there.folder):  # a run of this machine has it as its folder
                raise busy(there.folder)
        with storage_errors(there.place):
            there.make_folder(trial)
            try:
                there.fs.pipe_file(there.path(trial), b"trial")
            finally:  # a full disk keeps an empty one
                there.remove(trial)
    except RunError as error:
        if is_full(error):
            raise
        raise ConfigError(f"output: {error}") from error


def upload_shards(
    shards: Sequence[ShardManifest],
    folder: Path,
    url: str,
    *,
    keep_local: bool = True,
    sleep: _Sleep = time.sleep,
) -> None:
    """Bring shards from the folder of their dataset to a URL; what is there stays as it is.

    So does what another machine made and brought meanwhile. In a repository that is one commit.
    Without ``keep_local`` the files are removed here once they are there; the seals stay, and say
    where they are. Raises RunError when all tries failed.
    """
    there = files_at(url)
    ours = [manifest for manifest in shards if not manifest.place]
    _require_free(ours, url)
    if repository := find_repository(there):
        for start in range(0, len(ours), _MOST):
            commit = partial(_commit, repository, ours[start : start + _MOST], folder, url)
            _tried(commit, sleep)
    else:
        for manifest in ours:
            _put(manifest, folder, url, sleep, kept=_paths(ours))
    if not keep_local:
        for manifest in shards:
            _let_go(replace(manifest, place=manifest.place or url), folder)


class Uploader:
    """Brings the shards of a run to its URL as they are sealed, and says which are through.

    Where commits are counted, shards wait for each other; the rest is brought at the end, whatever
    ends the run but the second Ctrl-C.
    """

    def __init__(
        self,
        output: Output,
        through: Callable[[ShardManifest], None],
        *,
        sleep: _Sleep = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output, self._through, self._sleep, self._clock = output, through, sleep, clock
        counted = output.url and find_repository(files_at(output.url))
        self._pause = COMMIT_INTERVAL if counted else 0.0
        self._next = clock() + self._pause
        self._waiting: list[ShardManifest] = []
        self._failed = False

    def add(self, manifest: ShardManifest) -> None:
        """Bring a shard to the URL, now or with others that follow."""
        self._waiting.append(manifest)
        if self._clock() >= self._next:
            self._flush()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._flush()
        elif issubclass(kind, Exception) and not self._failed:
            with suppress(CahError):  # the error that is under way is the one to be told
                self._flush()

    def _flush(self) -> None:
        output, batch = self._output, self._waiting
        if not batch:
            return
        if output.url:
            self._failed = True
            keep = output.keep_local
            upload_shards(batch, output.folder, output.url, keep_local=keep, sleep=self._sleep)
            self._failed = False
        self._waiting, self._next = [], self._clock() + self._pause
        for manifest in batch:
            self._through(manifest)


def upload_pages(folder: Path, url: str, *, sleep: _Sleep = time.sleep) -> None:
    """Bring what is made anew at the end of a run, the report and the card, to a URL."""
    if repository := find_repository(files_at(url)):
        made = {path: folder / path for path in PAGES} | _counted(folder, url)
        commit = partial(
            repository.commit, made | _described(folder, url), (), message="Report and card"
        )
        _tried(commit, sleep)
        return
    for path in PAGES:
        _tried(partial(_bring, folder, url, path), sleep)
    for path, data in _counted(folder, url).items():
        _tried(partial(files_at(url).write, path, data), sleep)
    if described := find_description(folder):
        _tried(partial(commit_shards, url, described, pages=described.pages), sleep)


def _tried(action: Callable[[], _T], sleep: _Sleep) -> _T:
    """What an action answers at last; raises RunError when it failed every time.

    A place that is busy is waited for as long as it asks, for two hours in all.
    """
    pauses, patience = iter(_PAUSES), _PATIENCE
    while True:
        try:
            return action()
        except StorageBusy as busy:
            pause = busy.wait + 1 if busy.wait else _BUSY
            if (patience := patience - pause) < 0:
                raise
            _log.warning("%s Trying again in %d s.", busy, pause)
        except RunError:
            if (pause := next(pauses, -1)) < 0:
                raise
        sleep(pause)


def _require_free(shards: Sequence[ShardManifest], url: str) -> None:
    """Raise RunError if tars with numbers would replace those of other shards at a URL.

    A run brings none that has a number; of two folders that were copied there both have number 0.
    """
    names = {tar for each in shards if (tar := tar_path(each)) and tar_number(tar) is not None}
    ids = {each.shard.id for each in shards}
    if names:
        for each in read_manifests(url, damaged="skip"):
            if tar_path(each) in names and each.shard.id not in ids:
                raise RunError(
                    f"{tar_path(each)} at {files_at(url).place} belongs to another shard, "
                    f"{each.shard.id}; copy the dataset to a place of its own."
                )


def _paths(shards: Sequence[ShardManifest]) -> set[str]:
    """Return the files of some shards."""
    return {path for each in shards for path in each.files}


def _put(
    manifest: ShardManifest, folder: Path, url: str, sleep: _Sleep, *, kept: Collection[str] = ()
) -> None:
    """Bring a shard, file by file; its seal comes last. What is ``kept`` there is others' too."""
    name = manifest_path(manifest.shard.id)
    if not _tried(partial(_is_there, manifest, url), sleep):
        for path in manifest.files:
            _tried(partial(_bring, folder, url, path), sleep)
        _tried(partial(_remove_others, manifest, url, kept), sleep)
        _tried(partial(_bring, folder, url, name), sleep)
    if said := find_description(folder):
        _tried(partial(commit_shards, url, said, [manifest.shard.id]), sleep)


def _commit(
    repository: HubRepository, shards: Sequence[ShardManifest], folder: Path, url: str
) -> None:
    """Bring shards in one commit, those excepted that are there as they are here."""
    seals = {manifest_path(manifest.shard.id): manifest for manifest in shards}
    changed = {*repository.different({name: folder / name for name in seals})}
    present = {*repository.there_of([path for manifest in shards for path in manifest.files])}
    # a seal alone is not enough: what .gitignore names does not come along with it
    new = [
        n for n, manifest in seals.items() if n in changed or not present.issuperset(manifest.files)
    ]
    wanted = [path for name in new for path in (*seals[name].files, name)]
    old = {
        path for name in repository.there_of(new) for path in _others(repository.there, seals[name])
    } - _paths(shards)
    message = f"Shards: {len(new)} ({', '.join(seals[name].shard.id for name in new[:3])} …)"
    if new:
        removed = repository.there_of(sorted(old))
        brought = {path: folder / path for path in wanted}
        said = _described(folder, url, [seals[name].shard.id for name in new])
        repository.commit(brought | said, removed, message=message)


def _described(folder: Path, url: str, shards: Sequence[str] = ()) -> dict[str, LocalContent]:
    """Return dataset.json as it is to stand at a repository."""
    said = find_description(folder)
    if said is None:
        return {}
    return {DESCRIPTION_FILE: encode_checksummed(merge_descriptions(url, said, shards, said.pages))}


def _counted(folder: Path, url: str) -> dict[str, bytes]:
    """Return what is to stand beside the tars at a URL, those of others included."""
    ours, there = read_tar_sizes(folder), read_tar_sizes(url)
    present = (
        {path.rpartition("/")[2] for path in files_at(url).names("images")} if there else set()
    )
    others = {
        name: size
        for name, size in there.items()
        if name in present and not (folder / manifest_path(name.removesuffix(".tar"))).exists()
    }
    if not ours:
        return {}
    return {
        **encode_tar_sizes({**others, **ours}),
        TAR_CARD_FILE: (folder / TAR_CARD_FILE).read_bytes(),
    }


def _is_there(manifest: ShardManifest, url: str) -> bool:
    """Whether a shard is at a URL, be it as another machine made it."""
    there = Inventory(url)
    as_here = not there.fault(manifest) and there.shard(manifest.shard.id).manifest == manifest
    return as_here or there.has_another(manifest)


def _remove_others(manifest: ShardManifest, url: str, kept: Collection[str]) -> None:
    """Remove what a shard had at the URL before it was changed, and neither it nor another has."""
    there = files_at(url)
    if there.exists(manifest_path(manifest.shard.id)):
        with storage_errors(there.place):
            for path in _others(there, manifest):
                if path not in kept and there.exists(path):
                    there.fs.rm_file(there.path(path))


def _others(there: DatasetFiles, manifest: ShardManifest) -> Collection[str]:
    """The files that a shard has by the seal that is there, and no more by this one."""
    try:
        before = decode_manifest(there.read(manifest_path(manifest.shard.id)))
    except ValueError:  # an upload was cut off in the seal, behind which there is nothing old
        return ()
    return before.files.keys() - manifest.files.keys()


def _bring(folder: Path, url: str, path: str) -> None:
    """Put a file there, and see whether it is there as it is here."""
    there = files_at(url)
    with storage_errors(there.place):
        there.make_folder(path)
        there.fs.put_file(str(folder / path), there.path(path))
        _compare(folder / path, there, path)


def _compare(source: Path, there: DatasetFiles, path: str) -> None:
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


def _let_go(manifest: ShardManifest, folder: Path) -> None:
    """Remove a shard's files here; its seal first says where they are now."""
    write_file(folder / manifest_path(manifest.shard.id), encode_manifest(manifest))
    for path in manifest.files:
        with disk_errors(folder / path):
            (folder / path).unlink(missing_ok=True)
