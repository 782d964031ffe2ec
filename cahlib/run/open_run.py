"""Open a run directory: take its lock, check its job, open its ledger."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cahlib.core.atomic import write_file
from cahlib.core.config import Job, settings
from cahlib.core.errors import ConfigError, Stopped, folder_errors
from cahlib.core.lists import load_hashes
from cahlib.core.lock import lock_dataset
from cahlib.core.requirements import require_contact, require_nickname
from cahlib.core.run_directory import RunDirectory
from cahlib.core.secret_store import secret_path
from cahlib.crawl.candidates import check_link_rules
from cahlib.dataset.description import (
    describe_job,
    find_description,
    require_same_settings,
    stored_job,
)
from cahlib.dataset.file_names import require_writable
from cahlib.dataset.layout import PAGES
from cahlib.dataset.manifest import is_dataset, read_manifest
from cahlib.ledger.client import TrackerClient, TrackerUnavailable, WorkerOptions
from cahlib.ledger.local import LocalLedger
from cahlib.ledger.protocol import COMMITTED, Ledger
from cahlib.ledger.remote import RemoteLedger
from cahlib.model.known_harm import load_known_harm
from cahlib.model.scorer import check_model_files

_log = logging.getLogger(__name__)

_IGNORED = ".gitignore"


@contextmanager
def open_run_directory(
    job: Job,
    *,
    role: str,
    stop: threading.Event,
    refused: Callable[[dict[str, Any]], None] = lambda parcel: None,
    resume: Callable[[Job, LocalLedger], None] = lambda job, ledger: None,
) -> Iterator[Ledger]:
    """Lock the run directory for this process, and provide its ledger.

    With a tracker the ledger leases its shards there, as a worker of this role; ``refused`` is
    called for each parcel that the tracker rejects, those of an earlier launch included. ``resume``
    updates the ledger from the dataset. Raise ConfigError if the dataset is another job's.
    """
    folder, home = job.output.folder, RunDirectory(job.output.folder)
    with folder_errors(folder):
        _unclaimed(folder)
        before = _Before.of(home)
    with folder_errors(folder), lock_dataset(folder), before.restored_if_refused(home):
        _unpublished(home)
        _make_way(job, home)
        require_same_job(job)
        ledger = _ledger(job, home)
        try:
            ledger.recover()
            resume(job, ledger)
            job.store(home.job)  # not before: what was refused is not the dataset's job
            if job.place.tracker:
                remote = _shared(job, ledger, role, stop)
                remote.on_rejected_parcel = refused  # before reports of the last launch are sent
                with remote:
                    yield remote
            else:
                yield ledger
        finally:
            ledger.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """All that a launch makes before it works, as far as it was not there."""

    folders: tuple[Path, ...]  #: the dataset's and those above it, innermost first
    home: bool  #: the run directory
    ignored: bool  #: .gitignore

    @classmethod
    def of(cls, home: RunDirectory) -> _Before:
        folder = home.dataset.absolute()
        return cls(
            folders=tuple(each for each in (folder, *folder.parents) if not each.exists()),
            home=not home.path.exists(),
            ignored=not (folder / _IGNORED).exists(),
        )

    @contextmanager
    def restored_if_refused(self, home: RunDirectory) -> Iterator[None]:
        """Remove what a first launch made if it is refused before it scrapes anything."""
        try:
            yield
        except ConfigError:
            if self.home and not any(
                each.exists() for each in (home.parcels, home.swarm, home.tracker)
            ):
                shutil.rmtree(home.path, ignore_errors=True)
                if self.ignored:
                    (home.dataset / _IGNORED).unlink(missing_ok=True)
                with suppress(OSError):  # something else is in them
                    for folder in self.folders:
                        folder.rmdir()
            raise


class _Stopped(Stopped, TrackerUnavailable):
    """The user stopped the run while it waited for the tracker."""


def check_settings(job: Job) -> None:
    """Raise ConfigError for settings that cannot work, or that name files which cannot be used.

    Raise ModuleNotFoundError if the libraries of models are not installed.
    """
    with folder_errors(job.output.folder):
        require_writable(job.output.folder)
    require_contact(job)
    check_link_rules(job.crawl)
    load_hashes(job.download.known_harm, "known_harm")
    load_known_harm(job.judge.harm_looks, "harm_looks", job.judge.harm_distance)
    check_model_files(job.judge)


def require_same_job(job: Job, *, files_known: bool = True) -> None:
    """Raise ConfigError if a job's folder or its URL holds another job's dataset.

    Without ``files_known`` the job's files are another machine's, and are not compared.
    """
    folder, here = job.output.folder, find_description(job.output.folder)
    if before := stored_job(folder):
        apart = job.differences(before)
        if here and here.committed and here.settings is not None:  # what the dataset says counts
            apart = {name: each for name, each in apart.items() if name == "output"}
        job.require_same(apart, folder)
    require_described_same(job, files_known=files_known)


def require_described_same(job: Job, *, files_known: bool = True) -> None:
    """Raise ConfigError if the dataset in a job's folder, or at its URL, says it is another's."""
    folder, url = job.output.folder, job.output.url
    for at in (folder, url) if url else (folder,):
        require_same_settings(job, at, find_description(at), files_known=files_known)


def _shared(job: Job, ledger: LocalLedger, role: str, stop: threading.Event) -> RemoteLedger:
    """Return the ledger of a run that takes part in a tracker's crawl."""
    require_nickname(job)

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise _Stopped("Stopped while the tracker did not answer; run it again to continue.")

    tracker = TrackerClient(job.place.tracker, team=job.place.team, sleep=pause)
    folder = job.output.folder
    options = WorkerOptions(nickname=job.nickname, kind=role)
    remote = RemoteLedger(ledger, tracker, RunDirectory(folder).tracker, options)
    remote.read_similarities = partial(_similarities, folder)
    return remote


def _similarities(folder: Path, id: str) -> dict[str, float]:
    """Return how similar a shard's pairs are; nothing if its table is damaged."""
    from cahlib.dataset.write import shard_writer  # of pyarrow, which a scraper has not

    manifest = read_manifest(folder, id)
    try:
        return shard_writer.read_similarities(folder, manifest) if manifest else {}
    except (ValueError, KeyError):
        return {}


def _unclaimed(folder: Path) -> None:
    """Raise ConfigError if a folder has pages of others, which a dataset's would replace.

    A job or a manifest shows that it is a dataset: a project may have a folder `run` too, and a
    notebook creates one before the run begins. Without both, the pages are identified by content.
    """
    found = [name for name in PAGES if (folder / name).exists()]
    if not found or RunDirectory(folder).job.exists() or _committed(folder):
        return
    strange = [name for name in found if not PAGES[name].search(_bytes(folder / name))]
    if strange:
        raise ConfigError(
            f"output: {folder} has another {' and '.join(strange)}, which the dataset's would "
            "overwrite; move it away, or choose another folder."
        )


def _bytes(path: Path) -> bytes:
    """Return the content of a file; b"" if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _unpublished(home: RunDirectory) -> None:
    """Exclude the run directory from what people publish by git and by `hf upload`."""
    ignored, name = home.dataset / _IGNORED, home.path.name
    if not ignored.exists():
        write_file(ignored, f"# {name}/ is no part of the dataset\n/{name}/\n".encode())
    if (home.swarm / "keys").exists():  # as an earlier version left them
        secret_path(home.swarm, "keys")


def _make_way(job: Job, home: RunDirectory) -> None:
    """Remove another job that produced nothing, e.g. because its crawl or model does not exist.

    Its ledger is removed too, as it lists another crawl. A ledger of a tracker's shards stays: the
    tracker decides which of them are still ours.
    """
    before = stored_job(home.dataset)
    changed = set(job.differences(before)) if before else set()
    if not changed or _has_pairs(home):
        return
    # parcels scraped before a model failed to load can be used by any model and form
    serves = changed <= {each.name for each in settings() if each.group in ("judge", "output")}
    if any(home.parcels.glob("*.json")) and not serves:
        return
    home.job.unlink()
    if not job.place.tracker:
        for each in home.ledger_files():
            each.unlink()


def _ledger(job: Job, home: RunDirectory) -> LocalLedger:
    """Open the ledger of a job; another job's, copied here with its `run`, is set aside.

    So are the parcels beside it, which belong to other shards or have other images. A tracker's
    ledger is not checked: the tracker decides about its shards.
    """
    ours = describe_job(job).digest
    ledger = LocalLedger.open_or_replace(home.ledger)
    if not (job.place.tracker or ledger.belongs_to(ours)):
        ledger.close()
        aside = Path(tempfile.mkdtemp(prefix="another-", dir=home.path))
        for path in (*home.ledger_files(), home.parcels):
            if path.exists():
                path.rename(aside / path.name)
        _log.warning(
            "The ledger in %s is that of a job with other settings; it is rebuilt from the "
            "dataset, and the old one is kept in %s.",
            home.path,
            aside,
        )
        ledger = LocalLedger.open_or_replace(home.ledger)
    ledger.assign_to(ours)
    return ledger


def _has_pairs(home: RunDirectory) -> bool:
    """Return whether a run has committed a shard."""
    if _committed(home.dataset):
        return True
    ledger = LocalLedger.open_or_replace(home.ledger)
    try:
        return bool(ledger.in_state(COMMITTED, "done", "damaged"))
    finally:
        ledger.close()


def _committed(folder: Path) -> bool:
    """Return whether a folder holds a dataset: a manifest, or a list of committed shards."""
    said = find_description(folder)
    return is_dataset(folder) or bool(said and said.committed)
