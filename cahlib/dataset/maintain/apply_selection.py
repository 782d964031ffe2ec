"""Apply a selection: rewrite its dataset, or write a new one with the pairs that stay.

Both begin with a plan in the folder that is written to, which says what the rule chose; so one that
was killed is finished by the same command with the same result, though a share of what is left by
then would be another. The plan stays, and tells a repetition that there is nothing left to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cahlib.core.atomic import new_file, write_file
from cahlib.core.config import Output, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.core.lists import DigestSet
from cahlib.core.lock import lock_dataset
from cahlib.core.records import DropReason
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.description import find_description, stored_job, write_description
from cahlib.dataset.file_names import require_writable
from cahlib.dataset.maintain.purge import CHANGES_FILE, ChangeLog, change_line
from cahlib.dataset.maintain.rewrite import RemovalRule, ShardChange, copy_shard, rewrite_shards
from cahlib.dataset.maintain.selection import Selection, SelectionRule
from cahlib.dataset.manifest import (
    ShardManifest,
    encode_manifest,
    read_manifest,
    read_manifests,
    require_dataset,
)
from cahlib.dataset.show.pages import write_pages
from cahlib.dataset.storage.files import DatasetFiles, files_at
from cahlib.dataset.storage.hub import find_repository
from cahlib.dataset.storage.upload import Uploader, check_destination, upload_pages
from cahlib.dataset.write.columns import Row
from cahlib.dataset.write.shard_writer import recover_interrupted

#: What is to be done, and the keys of the pairs that go.
_PLAN, _GONE = RunDirectory().path / "selection.json", RunDirectory().path / "selection.npy"

#: Files of a plan that was not written to its end.
_BEGUN = re.compile(r"\.?selection\.(npy|json)")

#: The name of these changes in the log of changes.
_SELECT = "select"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionPlan:
    """The changes that a selection makes to a folder."""

    rule: Mapping[str, Any]  #: `SelectionRule.as_dict`
    dataset: str  #: digest of the dataset that the pairs were chosen from
    gone: NDArray[Any]  #: keys of the pairs that go, 16 bytes each
    pairs: int  #: of the dataset before
    stay: int  #: of these
    shards: tuple[str, ...] = ()  #: ids of the shards that were chosen from
    done: bool = False

    def why(self) -> RemovalRule:
        """Return what decides which pairs go."""
        keys = self.gone.tobytes()
        gone = DigestSet(keys[at : at + 16] for at in range(0, len(keys), 16))

        def why(row: Row) -> DropReason | None:
            return DropReason.DESELECTED if bytes.fromhex(row["uid"]) in gone else None

        return why


def plan_selection(selection: Selection, digest: str) -> SelectionPlan:
    """Return the plan of a selection; raise ConfigError if no pair would stay."""
    if not selection.count:
        raise ConfigError(
            "select: no pair would stay, so nothing was changed; choose another rule."
        )
    uids = selection.pairs.evaluate("uid").filter(pa.array(~selection.stays)).to_pylist()
    return SelectionPlan(
        rule=selection.rule.as_dict(),
        dataset=digest,
        gone=np.frombuffer(bytes.fromhex("".join(uids)), "V16"),
        pairs=selection.pairs.rows,
        stay=selection.count,
        shards=tuple(each.shard for each in selection.pairs.shards),
    )


def dataset_digest(place: str | Path) -> str:
    """Return a digest of a dataset's manifests and so of its files, whatever their names."""
    digest = hashlib.sha256()
    for each in read_manifests(place):
        sums = sorted(stored.sha256 for stored in each.files.values())
        digest.update(encode_manifest(replace(each, files={}, place=None)) + "".join(sums).encode())
    return digest.hexdigest()


def find_plan(folder: Path, rule: SelectionRule) -> SelectionPlan | None:
    """Return the plan in a folder, or None if there is none that matters.

    Raise ConfigError for an unfinished one with another rule.
    """
    try:
        stored = json.loads((folder / _PLAN).read_bytes())
        done = bool(stored["done"])
        gone = np.zeros(0, "V16") if done else np.load(folder / _GONE)
        plan = SelectionPlan(
            rule=dict(stored["rule"]), dataset=str(stored["dataset"]), gone=gone,
            pairs=int(stored["pairs"]), stay=int(stored["stay"]), done=done,
            shards=tuple(map(str, stored.get("shards", ()))),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if plan.rule == rule.as_dict():
        return plan
    if done:
        return None
    raise ConfigError(
        f"select: another selection of {folder} was interrupted; finish it first, with its own "
        f"rule: {json.dumps(plan.rule, ensure_ascii=False)}."
    )


def apply_plan(folder: Path, plan: SelectionPlan) -> Iterator[ShardChange]:
    """Remove the pairs that go, shard by shard, within `purge.change_dataset`.

    Raise as `rewrite_shards` does.
    """
    log = ChangeLog(folder, _SELECT, {"rule": plan.rule})
    changes = rewrite_shards(folder, plan.why(), note=log.note)  # checks that it can be changed
    _store(folder, plan)
    yield from changes
    # what a run has added since this began is not chosen from yet, so it is no state that is done
    digest = "" if added_since(folder, plan) else dataset_digest(folder)
    _finish(folder, replace(plan, dataset=digest))


def added_since(folder: Path, plan: SelectionPlan) -> int:
    """Return the number of shards with pairs that a plan did not choose from."""
    known = {*plan.shards}
    return sum(each.rows > 0 and each.shard.id not in known for each in read_manifests(folder))


def find_new_plan(source: str, into: str, rule: SelectionRule) -> SelectionPlan | None:
    """Return the plan by which a new dataset is there or begun, or None if nothing is.

    Raise ConfigError if something else is there, or it cannot be written.
    """
    if not into.strip():
        raise ConfigError("into: give a folder or a URL.")
    here = files_at(source).folder
    with _errors_of_into():
        output = destination(into)
        folder = output.folder
        if here and folder.resolve() == here.resolve():
            raise ConfigError(f"into: {into} is the dataset itself; --apply changes that.")
        if here and folder.resolve().is_relative_to(here.resolve()):
            raise ConfigError(f"into: {into} is inside the dataset; choose a folder beside it.")
        if output.url:
            check_destination(output.url, folder)
        above = next(each for each in (folder, *folder.parents) if each.exists())
        if not above.is_dir():
            raise ConfigError(f"into: {above} is not a folder; choose a new one.")
        require_writable(folder)
    plan = find_plan(folder, rule) if folder.is_dir() else None
    if plan is None and any(each.is_file() and not _is_begun(each) for each in folder.rglob("*")):
        if output.url:
            raise ConfigError(
                f"into: on their way to {into} files are in {folder}, which has others already; "
                "run it in another folder."
            )
        raise ConfigError(f"into: {folder} has files already; choose a new folder.")
    if plan and plan.dataset != dataset_digest(source):
        raise ConfigError(
            f"into: {folder} was made from another state of {source}; delete it, or choose a new "
            "folder."
        )
    return plan


def destination(into: str) -> Output:
    """Return where a new dataset is written: a folder, which a URL may name too, or a URL."""
    given = Output(output=into, keep_local=False)
    there = files_at(given.url).folder if given.url else None
    return replace(given, output=str(there)) if there else given


@contextmanager
def _errors_of_into() -> Iterator[None]:
    """Let errors about a place, or about the output of a run, name the option."""
    try:
        yield
    except ConfigError as error:
        said = str(error).removeprefix("into: ").removeprefix("output: ")
        raise ConfigError(f"into: {said}") from error


def write_selected(source: str, into: str, plan: SelectionPlan) -> Iterator[ShardChange]:
    """Write the pairs that stay into a new dataset, shard by shard; continue what was begun.

    The caller holds the source's lock, by `reading_source`. Raise RunError if a shard is damaged.
    """
    output, there, why = destination(into), files_at(source), plan.why()
    folder, said = output.folder, find_description(source)
    with lock_dataset(folder):
        _store(folder, plan)
        recover_interrupted(folder)
        if said:
            write_description(folder, replace(said, pages={}))
        history = there.read(CHANGES_FILE) if there.exists(CHANGES_FILE) else b""
        with Uploader(output, lambda _: None) as uploads:
            for manifest in read_manifests(source):
                copied = read_manifest(folder, manifest.shard.id)
                if copied is None:
                    with _files_here(source, manifest, folder) as place:
                        copied = copy_shard(place, replace(manifest, place=None), why, folder)
                uploads.add(copied)
                change = _change(manifest, copied)
                history += change_line(_SELECT, change, {"rule": plan.rule})
                yield change
        write_file(folder / CHANGES_FILE, history)
        if output.url and not find_repository(files_at(output.url)):  # where writing is a commit
            files_at(output.url).write(CHANGES_FILE, history)
        _write_about(source, folder, output)
        _finish(folder, plan)


@contextmanager
def reading_source(source: str) -> Iterator[None]:
    """Keep a dataset as it is while it is read; raise ConfigError if a command is changing it."""
    folder = files_at(source).folder
    if folder is None:
        yield
        return
    require_dataset(folder)  # before anything is made in a folder that is somebody else's
    if not os.access(folder, os.W_OK):  # nobody here changes it
        yield
        return
    with lock_dataset(folder):
        recover_interrupted(folder)
        yield


def _is_begun(path: Path) -> bool:
    """Return whether a file is what the first moments of a selection leave in a new folder."""
    return path.parent.name == RunDirectory().path.name and (
        path.name == "lock" or _BEGUN.match(path.name) is not None
    )


def _change(before: ShardManifest, after: ShardManifest) -> ShardChange:
    gone = before.rows - after.rows
    lost = {DropReason.DESELECTED: gone} if gone else {}
    return ShardChange(shard=after.shard.id, lost=lost, left=after.rows)


@contextmanager
def _files_here(source: str, manifest: ShardManifest, folder: Path) -> Iterator[Path]:
    """Provide a folder with the files of a shard: its own, or a copy from a URL."""
    there = files_at(manifest.place or source)
    if there.folder:
        yield there.folder
        return
    with tempfile.TemporaryDirectory(dir=RunDirectory(folder).path) as name:
        for path in manifest.files:
            (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
            _fetch(there, path, Path(name) / path)
        yield Path(name)


def _fetch(there: DatasetFiles, path: str, to: Path) -> None:
    with there.open(path) as source, new_file(to, sync=False) as file, there.reading(path):
        shutil.copyfileobj(source, file, 1 << 20)


def _write_about(source: str, folder: Path, output: Output) -> None:
    """Write what is about the whole dataset: its job, report and card."""
    job, at = None, files_at(source).folder
    if at and (found := stored_job(at)):
        job = replace_settings(found, output=output.output)
        job.store(RunDirectory(folder).job)
    write_pages(folder, job.values() if job else {"output": output.output})
    if output.url:
        upload_pages(folder, output.url)


def _store(folder: Path, plan: SelectionPlan) -> None:
    """Write a plan: first the keys, then what makes it valid."""
    if not plan.done:
        with new_file(folder / _GONE) as file:
            np.save(file, plan.gone)
    stored = {
        "rule": plan.rule, "dataset": plan.dataset, "pairs": plan.pairs, "stay": plan.stay,
        "shards": [*plan.shards], "done": plan.done,
    }  # fmt: skip
    write_file(folder / _PLAN, json.dumps(stored, indent=2) + "\n")


def _finish(folder: Path, plan: SelectionPlan) -> None:
    _store(folder, replace(plan, done=True))
    with suppress(OSError):
        (folder / _GONE).unlink(missing_ok=True)
