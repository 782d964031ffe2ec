"""Upload committed shards to a URL: their files, then their manifests, each verified there.

As on this machine, a shard at the URL is committed by its manifest. What an interrupted upload left
is overwritten by the next, and a shard that was changed here replaces the one there. Nothing here
knows the state of a run.
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

from cahlib.core.atomic import write_file
from cahlib.core.config import Output
from cahlib.core.errors import CahError, ConfigError, RunError, disk_errors, is_disk_full
from cahlib.core.lock import is_locked, locked_error
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

_log = logging.getLogger(__name__)

#: Seconds before each retry.
_PAUSES = (1, 4, 16, 64)

#: Seconds to wait for a busy storage in total, and each time if it does not say.
_MAX_WAIT, _BUSY = 7200.0, 60.0

#: Shards per commit: each has some six files, and the hub allows 25,000.
_MAX_SHARDS = 500

_T = TypeVar("_T")
_Sleep = Callable[[float], None]


def check_destination(url: str, folder: Path) -> None:
    """Raise ConfigError if a dataset cannot be uploaded from its folder to a URL."""
    trial = f"{MANIFESTS}/.trial"
    try:
        there = files_at(url)
        if there.folder and there.folder.resolve() == folder.resolve():
            raise ConfigError(
                f"output: {url} is the folder that would be uploaded; give it as a folder, "
                f"{there.root}, instead of a URL."
            )
        if repository := find_repository(there):
            repository.check(trial)
            return
        if there.folder:
            require_writable(there.folder)
            if is_locked(there.folder):  # a run of this machine writes there
                raise locked_error(there.folder)
        with storage_errors(there.place):
            there.make_folder(trial)
            try:
                there.fs.pipe_file(there.path(trial), b"trial")
            finally:  # a full disk leaves an empty one
                there.remove(trial)
    except RunError as error:
        if is_disk_full(error):
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
    """Upload shards from the folder of their dataset, except those that are there already.

    A shard that another machine made and uploaded meanwhile is kept. In a repository, many shards
    are one commit. Without ``keep_local`` the files are then removed here; the manifests stay, and
    name the URL. Raise RunError if all retries fail.
    """
    there = files_at(url)
    ours = [manifest for manifest in shards if not manifest.place]
    _require_free(ours, url)
    if repository := find_repository(there):
        for start in range(0, len(ours), _MAX_SHARDS):
            commit = partial(_commit, repository, ours[start : start + _MAX_SHARDS], folder, url)
            _retry(commit, sleep)
    else:
        for manifest in ours:
            _upload_shard(manifest, folder, url, sleep, kept=_paths(ours))
    if not keep_local:
        for manifest in shards:
            _remove_local(replace(manifest, place=manifest.place or url), folder)


class Uploader:
    """Uploads the shards of a run as they are committed, and reports which are done.

    Where commits are limited, shards are uploaded in batches; the last one at the end, whatever
    ends the run but a second Ctrl-C.
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
        """Upload a shard, now or in a batch with later ones."""
        self._waiting.append(manifest)
        if self._clock() >= self._next:
            self._flush()

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self._flush()
        elif issubclass(kind, Exception) and not self._failed:
            with suppress(CahError):  # the error that is propagating is to be reported
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
    """Upload what is rewritten at the end of a run: the report, the card, the tars' sizes."""
    if repository := find_repository(files_at(url)):
        made = {path: folder / path for path in PAGES} | _tar_index_for(folder, url)
        commit = partial(
            repository.commit, made | _description_for(folder, url), (), message="Report and card"
        )
        _retry(commit, sleep)
        return
    for path in PAGES:
        _retry(partial(_upload_file, folder, url, path), sleep)
    for path, data in _tar_index_for(folder, url).items():
        _retry(partial(files_at(url).write, path, data), sleep)
    if described := find_description(folder):
        _retry(partial(commit_shards, url, described, pages=described.pages), sleep)


def _retry(action: Callable[[], _T], sleep: _Sleep) -> _T:
    """Return the result of an action; raise RunError if all retries fail.

    A busy storage is waited for as long as it asks, up to two hours in total.
    """
    pauses, remaining = iter(_PAUSES), _MAX_WAIT
    while True:
        try:
            return action()
        except StorageBusy as busy:
            pause = busy.wait + 1 if busy.wait else _BUSY
            if (remaining := remaining - pause) < 0:
                raise
            _log.warning("%s Trying again in %d s.", busy, pause)
        except RunError:
            if (pause := next(pauses, -1)) < 0:
                raise
        sleep(pause)


def _require_free(shards: Sequence[ShardManifest], url: str) -> None:
    """Raise RunError if numbered tars would replace those of other shards at a URL.

    A run uploads none with a number, but two folders that are copied there both have number 0.
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


def _upload_shard(
    manifest: ShardManifest, folder: Path, url: str, sleep: _Sleep, *, kept: Collection[str] = ()
) -> None:
    """Upload a shard file by file, its manifest last; do not remove those ``kept`` there."""
    name = manifest_path(manifest.shard.id)
    if not _retry(partial(_is_there, manifest, url), sleep):
        for path in manifest.files:
            _retry(partial(_upload_file, folder, url, path), sleep)
        _retry(partial(_remove_others, manifest, url, kept), sleep)
        _retry(partial(_upload_file, folder, url, name), sleep)
    if said := find_description(folder):
        _retry(partial(commit_shards, url, said, [manifest.shard.id]), sleep)


def _commit(
    repository: HubRepository, shards: Sequence[ShardManifest], folder: Path, url: str
) -> None:
    """Upload shards in one commit, except those that are the same there."""
    manifests = {manifest_path(manifest.shard.id): manifest for manifest in shards}
    changed = {*repository.different({name: folder / name for name in manifests})}
    present = {*repository.there_of([path for manifest in shards for path in manifest.files])}
    # a manifest alone is not enough: files that .gitignore names are not uploaded with it
    new = [
        n
        for n, manifest in manifests.items()
        if n in changed or not present.issuperset(manifest.files)
    ]
    wanted = [path for name in new for path in (*manifests[name].files, name)]
    old = {
        path
        for name in repository.there_of(new)
        for path in _others(repository.there, manifests[name])
    } - _paths(shards)
    message = f"Shards: {len(new)} ({', '.join(manifests[name].shard.id for name in new[:3])} …)"
    if new:
        removed = repository.there_of(sorted(old))
        brought = {path: folder / path for path in wanted}
        said = _description_for(folder, url, [manifests[name].shard.id for name in new])
        repository.commit(brought | said, removed, message=message)


def _description_for(folder: Path, url: str, shards: Sequence[str] = ()) -> dict[str, LocalContent]:
    """Return dataset.json for a repository, by its name."""
    said = find_description(folder)
    if said is None:
        return {}
    return {DESCRIPTION_FILE: encode_checksummed(merge_descriptions(url, said, shards, said.pages))}


def _tar_index_for(folder: Path, url: str) -> dict[str, bytes]:
    """Return the files beside the tars for a URL, with the tars of others counted."""
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
    """Return whether a shard is at a URL, be it as another machine made it."""
    there = Inventory(url)
    as_here = not there.fault(manifest) and there.shard(manifest.shard.id).manifest == manifest
    return as_here or there.has_another(manifest)


def _remove_others(manifest: ShardManifest, url: str, kept: Collection[str]) -> None:
    """Remove files that a shard had at the URL before it was changed, unless others have them."""
    there = files_at(url)
    if there.exists(manifest_path(manifest.shard.id)):
        with storage_errors(there.place):
            for path in _others(there, manifest):
                if path not in kept and there.exists(path):
                    there.fs.rm_file(there.path(path))


def _others(there: DatasetFiles, manifest: ShardManifest) -> Collection[str]:
    """Return the files of a shard's manifest there that this one no longer has."""
    try:
        before = decode_manifest(there.read(manifest_path(manifest.shard.id)))
    except ValueError:  # an upload was cut off in the manifest, after all old files
        return ()
    return before.files.keys() - manifest.files.keys()


def _upload_file(folder: Path, url: str, path: str) -> None:
    """Upload a file, and verify it there."""
    there = files_at(url)
    with storage_errors(there.place):
        there.make_folder(path)
        there.fs.put_file(str(folder / path), there.path(path))
        _compare(folder / path, there, path)


def _compare(source: Path, there: DatasetFiles, path: str) -> None:
    """Raise OSError if a file differs from its source.

    S3's ETag is the md5 of an object that was uploaded in one piece and not encrypted with a key of
    its own: then nothing needs to be downloaded, which costs money. Any other storage is read.
    """
    there.fs.invalidate_cache()
    with open(source, "rb") as file:
        sent = _md5(file)
    if str(there.fs.info(there.path(path)).get("ETag", "")).strip('"') == sent:
        return
    with there.open(path) as file:
        if _md5(file) != sent:
            raise OSError(f"{path} did not arrive intact")


def _md5(file: BinaryIO) -> str:
    digest = hashlib.md5()
    while data := file.read(1 << 20):
        digest.update(data)
    return digest.hexdigest()


def _remove_local(manifest: ShardManifest, folder: Path) -> None:
    """Remove a shard's files here; its manifest first names the URL."""
    write_file(folder / manifest_path(manifest.shard.id), encode_manifest(manifest))
    for path in manifest.files:
        with disk_errors(folder / path):
            (folder / path).unlink(missing_ok=True)
