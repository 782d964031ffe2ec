"""Repair a dataset by discarding incomplete shards, so that a run makes them again.

All files of a discarded shard are removed; complete shards stay as they are. Safe to interrupt and
repeat. Nothing here knows ledgers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from cahlib.core.errors import RunError
from cahlib.dataset import description
from cahlib.dataset.description import (
    Description,
    describe_job,
    find_description,
    forget_shards,
    stored_job,
    write_description,
)
from cahlib.dataset.layout import CURRENT_LAYOUT, MANIFESTS, further_model, shard_paths
from cahlib.dataset.maintain.purge import changed_shards
from cahlib.dataset.maintain.verify import Problem, ProblemKind, find_problems
from cahlib.dataset.manifest import (
    committed_ids,
    encode_manifest,
    manifest_path,
    read_manifest,
    read_manifests,
    tar_path,
)
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.write.shard_writer import recover_interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """The damage found at a place."""

    place: str | Path
    broken: dict[str, str] = field(default_factory=dict)  #: shards by id, with the first problem
    left: dict[str, str] = field(default_factory=dict)  #: files to remove by path, with the reason
    #: complete shards and other files that do not belong there
    foreign: dict[str, str] = field(default_factory=dict)
    #: files because of which nothing is repaired
    unreadable: dict[str, str] = field(default_factory=dict)
    again: dict[str, str] = field(default_factory=dict)  #: dataset.json and pages to rewrite
    #: shards whose change is to be completed
    unfinished: dict[str, str] = field(default_factory=dict)
    #: damaged vectors of further models, by path
    vectors: dict[str, str] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()  #: shards from which pairs were removed

    def lines(self) -> Iterator[str]:
        """Yield what is done, one line each."""
        for id, why in self.broken.items():
            yield (
                f"{why} Shard {id} is discarded: its files are removed, and a run makes it again."
                + " What was purged from it comes back then, unless it is purged again."
                * (id in self.changed)
            )
        for why in self.unreadable.values():
            yield f"{why} Nothing is repaired until it can be read or is moved away."
        here = isinstance(self.place, Path)
        for why in self.unfinished.values():
            yield f"{why} " + (
                "It is completed." if here else "It is left alone; repair it in a folder."
            )
        for why in self.left.values():
            yield f"{why} It is removed."
        for why in self.vectors.values():
            yield f"{why} The shard loses that model's vectors; `cah score` makes them again."
        for why in self.again.values():
            yield f"{why} It is rewritten."
        for why in self.foreign.values():
            yield f"{why} It is left alone; move it to where it belongs."


def plan_repair(place: str | Path, known: Collection[str] = ()) -> RepairPlan:
    """Find what is to be repaired; ``known`` are the ids of shards that a ledger has.

    Raise ConfigError if there is no dataset.
    """
    found = RepairPlan(place=place, changed=changed_shards(place))
    for problem in find_problems(place, known):
        kinds = {
            ProblemKind.SHARD: found.broken,
            ProblemKind.LEFT: found.left,
            ProblemKind.FOREIGN: found.foreign,
            ProblemKind.UNREADABLE: found.unreadable,
            ProblemKind.UNFINISHED: found.unfinished,
            ProblemKind.VECTORS: found.vectors,
        }
        _note(kinds.get(problem.kind, found.again), problem)
    folders = files_at(place).folders()
    for id in found.broken:  # its files are removed with it
        found.foreign.pop(id, None)
        for path in shard_paths(id, folders):
            found.left.pop(path, None)
            found.vectors.pop(path, None)
    return found


def repair(found: RepairPlan) -> None:
    """Carry out the plan; nobody else may write to the place meanwhile.

    Raise RunError if something cannot be read: with other permissions, or another cable, sound
    shards would have been lost.
    """
    for why in found.unreadable.values():
        raise RunError(f"{why} Nothing was repaired; make it readable or move it away first.")
    place, at = found.place, files_at(found.place)
    if isinstance(place, Path):
        recover_interrupted(place)
    for id in found.broken:
        _discard(place, id)
    if found.vectors:
        _drop_vectors(place, found.vectors)
    for path in found.left:
        at.remove(path)
    before = find_description(place)
    whole = committed_ids(at.sizes([MANIFESTS]))
    said = before or _described(place)
    if whole or before:
        write_description(place, replace(said, committed=tuple(whole)))
    if found.broken or found.again or found.unfinished or found.vectors:
        job = stored_job(place) if isinstance(place, Path) else None
        write_pages(place, job.values() if job else {})


def _note(where: dict[str, str], problem: Problem) -> None:
    where.setdefault(problem.name, problem.sentence)


def _discard(place: str | Path, id: str) -> None:
    """Remove a shard, its manifest first, so that an interruption leaves it uncommitted."""
    try:
        manifest = read_manifest(place, id)
    except RunError:  # damaged
        manifest = None
    places = [place, manifest.place] if manifest and manifest.place else [place]
    for each in places:
        at = files_at(each)
        at.remove(manifest_path(id))
        # not all that the manifest names: it may be damaged, or a stranger's
        tar = {tar for tar in [manifest and tar_path(manifest)] if tar} - _tars(each)
        for path in shard_paths(id, at.folders()) | tar:
            at.remove(path)
        forget_shards(each, [id])


def _drop_vectors(place: str | Path, damaged: Collection[str]) -> None:
    """Remove the vectors of a model from the shards in which some are damaged, here and there.

    A manifest no longer names them before they are removed.
    """
    for found in read_manifests(place, damaged="skip"):
        models = {further_model(path) for path in found.files.keys() & {*damaged}}
        for each in (place, found.place) if models and found.place else (place,) if models else ():
            at, manifest = files_at(each), read_manifest(each, found.shard.id)
            if manifest is not None:
                gone = {path for path in manifest.files if further_model(path) in models}
                kept = {path: s for path, s in manifest.files.items() if path not in gone}
                renewed = encode_manifest(replace(manifest, files=kept))
                at.write(manifest_path(found.shard.id), renewed)
                for path in gone:
                    at.remove(path)


def _tars(place: str | Path) -> set[str | None]:
    """Return the tars that the manifests at a place name."""
    return {tar_path(each) for each in read_manifests(place, damaged="skip")}


def _described(place: str | Path) -> Description:
    """Return the description of a dataset without dataset.json: its job's, or a mere digest."""
    digests = {manifest.settings for manifest in read_manifests(place, damaged="skip")}
    job = stored_job(place) if isinstance(place, Path) else None
    layout = description.layout_of(place) or CURRENT_LAYOUT
    if job and digests <= {"", (ours := describe_job(job)).digest}:
        return replace(ours, layout=layout)
    return Description(digest=max(digests, default=""), layout=layout)
