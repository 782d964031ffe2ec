"""Notice that shards of a dataset changed after they were read, so that rows mean other pairs.

On this machine one stat of the folder of manifests tells it. At a URL it takes a listing, which is
made only when something could not be read. Shards that a run adds are no change.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cahlib.core.errors import RunError
from cahlib.dataset.layout import MANIFESTS
from cahlib.dataset.manifest import ShardManifest, manifest_path, read_manifest
from cahlib.dataset.storage.files import files_at


class DatasetChanged(RunError):
    """Shards have changed since they were read."""

    def __init__(self) -> None:
        super().__init__("The dataset has changed since this page was opened; reload it.")


class ChangeWatch:
    """The state of the manifests at a place, from before they are read."""

    def __init__(self, place: str) -> None:
        self._place, self._files = place, files_at(place)
        self._read: dict[str, ShardManifest] = {}
        self._seen = self._folder_time()  # before the listing, so that no change is missed
        self._sizes = self._listed()
        self._changed = False

    def names(self) -> list[str]:
        """Return the paths in the folder of manifests."""
        return sorted(self._sizes)

    def compare(self, manifests: Iterable[ShardManifest]) -> None:
        """Take the manifests as they were read."""
        self._read = {manifest_path(each.shard.id): each for each in manifests}

    def require_unchanged(self, *, failed: bool = False) -> None:
        """Raise DatasetChanged if a shard has other pairs by now.

        With ``failed``, because something could not be read, any change counts, and a place at a
        URL is asked.
        """
        if not self._changed and (failed or (self._files.folder and self._stirred())):
            self._changed = self._has_changed(any_change=failed)
        if self._changed:
            raise DatasetChanged

    def _stirred(self) -> bool:
        """Return whether a file was put into the folder of manifests since the last look."""
        now = self._folder_time()
        before, self._seen = self._seen, now
        return now != before

    def _folder_time(self) -> int:
        folder = self._files.folder
        try:
            return (folder / MANIFESTS).stat().st_mtime_ns if folder else 0
        except OSError:
            return -1

    def _listed(self) -> dict[str, tuple[int, int]]:
        """Return the size of each manifest and, of files here, when it was written."""
        if not (folder := self._files.folder):
            found = self._files.sizes([MANIFESTS])
            return {name: (size, 0) for name, size in found.items() if name.startswith(MANIFESTS)}
        return {name: _stamp(folder / name) for name in self._files.names(MANIFESTS)}

    def _has_changed(self, *, any_change: bool) -> bool:
        now = self._listed()
        for name, manifest in self._read.items():
            if now.get(name) == self._sizes.get(name):
                continue
            if name not in now or any_change:
                return True
            if _pairs(self._again(manifest)) != _pairs(manifest):
                return True
        self._sizes |= now
        return False

    def _again(self, manifest: ShardManifest) -> ShardManifest | None:
        try:
            return read_manifest(self._place, manifest.shard.id)
        except RunError:
            return None


def _pairs(manifest: ShardManifest | None) -> tuple[float, ...]:
    """Return what changes with the pairs of a shard, and not when it is given more scores."""
    return (manifest.rows, manifest.started, manifest.finished) if manifest else ()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
