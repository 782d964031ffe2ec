"""Resume a run: compare the dataset's settings with the job's, and update the ledger from it.

The dataset, in its folder and at its URL, is the truth, and the ledger an index of it: whatever
happened to `run`, a committed shard is not done again. One that is damaged is left as it is, and
reported: only `cah repair` removes it.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from cahlib.core.atomic import write_file
from cahlib.core.config import Job
from cahlib.core.errors import CahError, ConfigError
from cahlib.core.run_directory import RunDirectory
from cahlib.core.wording import plural
from cahlib.dataset.description import (
    commit_shards,
    describe_continued,
    describe_job,
    forget_shards,
)
from cahlib.dataset.inventory import Inventory, ShardState
from cahlib.dataset.maintain.numbering import has_numbered_tar, unnumber_tars
from cahlib.dataset.manifest import encode_manifest, manifest_path, read_manifests
from cahlib.dataset.write.shard_writer import read_uids, recover_interrupted
from cahlib.ledger.local import LocalLedger
from cahlib.ledger.protocol import COMMITTED, Ledger
from cahlib.model.model_source import find_source

_log = logging.getLogger(__name__)

_COMMITTED = COMMITTED, "done", "damaged"


def resume(job: Job, ledger: LocalLedger) -> None:
    """Update the ledger and the descriptions from the dataset.

    The caller holds the folder's lock. Raise ConfigError if a shard is another job's.
    """
    folder = job.output.folder
    recover_interrupted(folder)
    if job.output.url and has_numbered_tar(folder):  # as by a repair that knew of no URL
        _Resuming(job, ledger).require_ours()
        unnumber_tars(folder)
    ours = describe_continued(job)
    work = _Resuming(job, ledger)
    work.through()
    work.tell()
    for place, ids in work.whole.items():
        if ids:
            commit_shards(place, ours, ids)


def find_faults(job: Job, ledger: Ledger) -> Iterator[str]:
    """Yield what is wrong with the committed shards at a run's end, a sentence per place.

    Files at a URL are checked by one listing.
    """
    folder, url = job.output.folder, job.output.url
    here, there = Inventory(folder), Inventory(url) if url else None
    wrong: dict[str, list[str]] = {}
    for id, error in ledger.errors("damaged"):
        own = here.shard(id)
        lies_there = there and there.ids() and (own.manifest is None or own.manifest.place)
        place = there if there and lies_there and not (own.has_manifest and own.fault) else here
        wrong.setdefault(place.files.place, []).append(f"{id}: {error}")
    if there:
        done = {shard.id for shard in ledger.in_state("done")}
        for manifest in read_manifests(folder, damaged="skip"):
            id = manifest.shard.id
            if id in done and (fault := there.fault(manifest)):
                wrong.setdefault(there.files.place, []).append(f"{id}: {fault}")
    for name, shards in wrong.items():
        yield (
            f"{name} has {plural(len(shards), 'damaged shard')}, left as found (first: "
            f"{shards[0].rstrip('.')}); `cah repair {shlex.quote(name)}` removes what is damaged, "
            "and the same command does it again."
        )


class _Resuming:
    """The comparison of one job's folder and URL with its ledger."""

    def __init__(self, job: Job, ledger: LocalLedger) -> None:
        self._job, self._ledger = job, ledger
        self._folder, self._url = job.output.folder, job.output.url
        self._states = ledger.states()
        self._settings = describe_job(job).digest
        self._here = Inventory(self._folder)
        self._there = Inventory(self._url) if self._url else None
        away = RunDirectory(self._folder).elsewhere
        self._elsewhere = set(away.read_text().split()) if away.exists() else set[str]()
        self._entered = self._old = 0
        #: ids of whole shards, by place
        self.whole: dict[str | Path, list[str]] = {p: [] for p in (self._folder, self._url) if p}

    @cached_property
    def _made(self) -> tuple[str, float, tuple[str, ...]]:
        """Return the job's settings that manifests record; only when needed, as models are slow."""
        judge = self._job.judge
        return find_source(judge).name, judge.chosen()[2], self._job.forms

    def through(self) -> None:
        """Update every shard that is committed here or there, or in the ledger."""
        ids = dict.fromkeys(self._here.ids())
        if self._there:
            ids |= dict.fromkeys(self._there.ids())
        ids |= dict.fromkeys(id for id, state in self._states.items() if state in _COMMITTED)
        for id in ids:
            self._compare(id)

    def require_ours(self) -> None:
        """Raise ConfigError if the folder has another job's shards."""
        for id in self._here.ids():
            self._require_ours(self._here.shard(id), self._here)

    def tell(self) -> None:
        """Log what was found."""
        place = (self._there or self._here).files.place
        if self._entered:
            _log.warning(
                "%s has %s that the ledger did not list; they are not done again.",
                place,
                plural(self._entered, "committed shard"),
            )
        described = [each.description for each in (self._here, self._there) if each]
        if self._old and not any(each and each.settings is not None for each in described):
            _log.warning(
                "%s was made by an earlier cahlib: of %s, only model, threshold and forms could be "
                "compared with this job's, not the other settings.",
                place,
                plural(self._old, "shard"),
            )

    def _compare(self, id: str) -> None:
        here = self._here.shard(id)
        self._require_ours(here, self._here)
        if id in self._elsewhere and here.manifest:
            self._enter(here._replace(fault=""), "done")
        elif self._there is None:
            if not self._given_up(here):
                self._enter(here, self._state(id))
        elif here.manifest and not here.manifest.place:
            self._own(here, self._there)
        elif here.manifest or not here.has_manifest:
            self._brought(here, self._there)
        else:
            self._ledger.mark_damaged(id, here.fault)

    def _own(self, here: ShardState, there: Inventory) -> None:
        """Update a shard whose files are in the folder, uploaded or still to be uploaded."""
        if here.fault or here.manifest is None:
            self._enter(here, "")
        elif not there.fault(here.manifest) or there.has_another(here.manifest):
            self.whole[there.at].append(here.id)
            self._enter(here, self._state(here.id))
        else:
            self._enter(here, COMMITTED)

    def _brought(self, here: ShardState, there: Inventory) -> None:
        """Update a shard whose files are only at the URL, from another machine or launch."""
        if here.manifest and not there.fault(here.manifest):
            found = here
        else:
            found = there.shard(here.id)
            self._require_ours(found, there)
        if self._given_up(found):
            (self._folder / manifest_path(here.id)).unlink(missing_ok=True)
            return
        if found.manifest and not found.fault:
            self.whole[there.at].append(found.id)
            if found is not here:
                brought = replace(found.manifest, place=str(there.at))
                write_file(self._folder / manifest_path(found.id), encode_manifest(brought))
                found = found._replace(manifest=brought)
                self._states.pop(found.id, None)  # its pairs may differ from the known ones
        self._enter(found, "done" if not self._job.place.tracker else self._state(found.id))

    def _given_up(self, found: ShardState) -> bool:
        """Remove a shard that only the ledger has, if the description shows a repair removed it."""
        place = self._there or self._here
        listed = place.description
        if found.has_manifest or listed is None or found.id in listed.committed:
            return False
        self._ledger.remove(found.id)
        forget_shards(self._folder, [found.id])
        return True

    def _state(self, id: str) -> str:
        """Return the state of an intact shard at its destination.

        One that was in progress has a parcel to delete, or a tracker to report to.
        """
        in_work = self._states.get(id) in ("todo", "leased", "failed")
        return COMMITTED if in_work or self._job.place.tracker else "done"

    def _enter(self, found: ShardState, state: str) -> None:
        """Enter a shard into the ledger."""
        if found.manifest is None or found.fault:
            self._ledger.mark_damaged(found.id, found.fault)
            return
        self.whole[self._folder].append(found.id)
        known = self._states.get(found.id)
        if known == state or (
            known in (COMMITTED, "done") and not (self._url and state == COMMITTED)
        ):
            return
        try:
            uids = read_uids(self._folder, found.manifest)
        except (CahError, pa.ArrowException, OSError, KeyError, ValueError) as error:
            if found.id not in self._elsewhere:
                self._ledger.mark_damaged(found.id, f"its metadata cannot be read ({error}).")
                return
            uids = []
        self._ledger.adopt(found.manifest.shard, uids, found.manifest.stats, state=state)
        self._entered += known is None

    def _require_ours(self, found: ShardState, place: Inventory) -> None:
        """Raise ConfigError for a shard made with other settings, as far as recorded."""
        manifest = found.manifest
        if manifest is None:
            return
        name = place.files.place
        if (manifest.model, manifest.threshold, manifest.forms) != self._made:
            raise ConfigError(
                f"output: {name} holds a dataset made with another model, threshold or forms "
                f"(shard {found.id}: {manifest.model}, {manifest.threshold:g}, "
                f"{','.join(manifest.forms) or 'none'}); choose another folder or URL, or use the "
                "same settings."
            )
        if not manifest.settings:
            self._old += 1
        elif manifest.settings != self._settings:
            raise ConfigError(
                f"output: shard {found.id} of {name} was made with other settings than this job's; "
                "choose another folder or URL, use the settings on its card, or remove that "
                "shard's files if they were mixed in."
            )
