"""The committed shards at a place, and whether all of their files are there.

Files are compared by size, in one listing; `cahlib.dataset.maintain.verify` compares their content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from cahlib.core.errors import RunError
from cahlib.dataset.description import Description, find_description
from cahlib.dataset.layout import dataset_folders
from cahlib.dataset.manifest import (
    ShardManifest,
    committed_ids,
    encode_manifest,
    manifest_path,
    read_manifest,
)
from cahlib.dataset.storage.files import files_at


class ShardState(NamedTuple):
    """The state of a shard at a place."""

    id: str
    manifest: ShardManifest | None  #: None if it is damaged or missing
    fault: str  #: why it is incomplete, or ""
    has_manifest: bool = True  #: be it damaged


class Inventory:
    """The shards in a folder or at a URL, as listed at the first access."""

    def __init__(self, at: str | Path) -> None:
        self.at, self.files = at, files_at(at)

    @cached_property
    def description(self) -> Description | None:
        return find_description(self.at)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        return self.files.sizes(dataset_folders(self.files.folders()))

    def ids(self) -> list[str]:
        """Return the sorted ids of shards that have a manifest or are listed as committed."""
        listed = self.description.committed if self.description else ()
        return sorted({*committed_ids(self.sizes), *listed})

    def shard(self, id: str) -> ShardState:
        """Return the state of a shard; if its files are elsewhere, that of its manifest."""
        name = manifest_path(id)
        if name not in self.sizes:
            return ShardState(id, None, f"{name} is missing.", has_manifest=False)
        try:
            manifest = read_manifest(self.at, id)
        except RunError as error:
            return ShardState(id, None, str(error))
        if manifest is None:
            return ShardState(id, None, f"{name} is missing.", has_manifest=False)
        return ShardState(id, manifest, "" if manifest.place else self._lacking(manifest))

    def fault(self, manifest: ShardManifest) -> str:
        """Return what is missing here of a shard with this manifest, from anywhere, or ""."""
        name = manifest_path(manifest.shard.id)
        if name not in self.sizes:
            return f"{name} is missing."
        if self.sizes[name] != len(encode_manifest(replace(manifest, place=None))):
            here = self.shard(manifest.shard.id)  # of another version, changed, or damaged
            if here.manifest is None:
                return here.fault
        return self._lacking(manifest)

    def _lacking(self, manifest: ShardManifest) -> str:
        for path, stored in manifest.files.items():
            if path not in self.sizes:
                return f"{path} is missing."
            if self.sizes[path] != stored.size:
                return f"{path} has {self.sizes[path]:,} bytes instead of {stored.size:,}."
        return ""

    def has_another(self, manifest: ShardManifest) -> bool:
        """Return whether this place has the complete shard as another machine made it.

        A shard that was only changed later, e.g. by a purge, does not count.
        """
        here = self.shard(manifest.shard.id)
        if here.manifest is None or here.fault:
            return False
        return (here.manifest.started, here.manifest.finished) != (
            manifest.started,
            manifest.finished,
        )
