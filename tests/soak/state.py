"""What a dataset is, as the destroyer sees it: read without any of the code that it tries.

A shard is whole if its manifest carries its own checksum and each file that it names has the size
and the checksum that it says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

FOLDERS = (
    "metadata", "images", "img_emb", "text_emb", "tfrecords", "optouts", "outcomes", "shards",
)  # fmt: skip
_BESIDE = {"README.md", "nshards.txt", "sizes.json"}  # what tells of the tars beside them
_HEAD, _TAIL = b'{"sha256":"', b'","contents":'


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A whole shard."""

    manifest: str  #: sha256 of what it says, whatever number its tar has
    files: Mapping[str, str]  #: sha256 by path, of all files beside the manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What stands at a place."""

    whole: dict[str, Shard] = field(default_factory=dict)  #: by id
    broken: dict[str, str] = field(default_factory=dict)  #: by id: why, of shards with a manifest
    away: frozenset[str] = frozenset()  #: ids of shards whose files are elsewhere
    #: broken shards of which each file has its size, so that only reading them tells
    hidden: frozenset[str] = frozenset()
    stray: frozenset[str] = frozenset()  #: files that no whole shard has
    listed: frozenset[str] | None = None  #: ids in dataset.json; None if it is gone or damaged


def state(place: Path) -> State:
    """Return what stands in a folder."""
    whole: dict[str, Shard] = {}
    broken: dict[str, str] = {}
    away, hidden, named = set(), set(), set()
    for path in sorted((place / "shards").glob("*.json")):
        if path.name.startswith(".") or " (" in path.name or ".sync-conflict" in path.name:
            continue
        id, said = path.stem, contents(path.read_bytes())
        if said is None or said["shard"]["id"] != id:
            broken[id] = "manifest"
            continue
        named.add(f"shards/{path.name}")
        if said["place"]:
            away.add(id)
            continue
        named |= set(said["files"])
        wrong = [name for name, stored in said["files"].items() if not _is(place / name, stored)]
        if not wrong:
            said["files"] = {_plain(name, id): stored for name, stored in said["files"].items()}
            sums = {name: stored["sha256"] for name, stored in said["files"].items()}
            whole[id] = Shard(manifest=_sha256(json.dumps(said).encode()), files=sums)
            continue
        broken[id] = wrong[0]
        if all(_size(place / name) == stored["size"] for name, stored in said["files"].items()):
            hidden.add(id)
    stray = frozenset(path for path in _files(place) if path not in named)
    data = place / "dataset.json"
    description = contents(data.read_bytes()) if data.is_file() else None
    listed = frozenset(description["committed"]) if description else None
    return State(
        whole=whole, broken=broken, away=frozenset(away), hidden=frozenset(hidden), stray=stray,
        listed=listed,
    )  # fmt: skip


def contents(data: bytes) -> Any | None:
    """Return what signed JSON says, or None if it is damaged."""
    cut = len(_HEAD) + 64
    if not (data.startswith(_HEAD) and data[cut : cut + len(_TAIL)] == _TAIL):
        return None
    inner = data[cut + len(_TAIL) : -1]
    if not data.endswith(b"}") or _sha256(inner).encode() != data[len(_HEAD) : cut]:
        return None
    return json.loads(inner)


def uids(place: Path, id: str) -> list[str]:
    """Return the keys of a shard's pairs, in order."""
    path = place / f"metadata/metadata_{id}.parquet"
    return list(pq.read_table(path, columns=["uid"])["uid"].to_pylist()) if path.exists() else []


def _plain(name: str, id: str) -> str:
    """Return the name of a shard's file, where a tar may have a number, as it was first."""
    return f"images/{id}.tar" if name.startswith("images/") else name


def _files(place: Path) -> Iterator[str]:
    for folder in FOLDERS:
        for path in (place / folder).rglob("*"):
            if path.is_file() and path.name not in _BESIDE:
                yield path.relative_to(place).as_posix()


def _is(path: Path, stored: Mapping[str, Any]) -> bool:
    return _size(path) == stored["size"] and _sha256(path.read_bytes()) == stored["sha256"]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
