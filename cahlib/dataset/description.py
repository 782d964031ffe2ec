"""dataset.json: the settings that made a dataset, and the list of its committed shards.

It stands in the dataset's folder, here and at a URL, so that a dataset that was copied without its
`run` folder still says what it is, and a shard that vanished is missed. A shard's manifest has the
last word: one that is there and not on the list was committed by a run that was killed before it
could say so here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cahlib import __version__
from cahlib.config import DamagedJob, Job, settings
from cahlib.dataset.checksummed_json import decode_checksummed, encode_checksummed
from cahlib.dataset.layout import CURRENT_LAYOUT
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.hashed_file import FileRecord
from cahlib.errors import RunError
from cahlib.fingerprint import differences, digest

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_told = set[str]()  # of which damaged files users know

DESCRIPTION_FILE = "dataset.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The record of what a dataset says of itself."""

    #: that decide what is in it, by name (`cahlib.fingerprint`); None if nobody knows them
    settings: Mapping[str, Any] | None = None
    digest: str = ""  #: of the settings, as each manifest carries it
    committed: tuple[str, ...] = ()  #: ids of shards, sorted
    #: the report and the card as they were written last
    pages: Mapping[str, FileRecord] = field(default_factory=dict)
    version: str = __version__  #: of the cahlib that wrote it
    layout: int = 1  #: which layout it has, up to `CURRENT_LAYOUT`


def describe_job(job: Job) -> Description:
    """Return the description of a job's dataset before its first shard."""
    values = job.fingerprint()
    return Description(settings=values, digest=digest(settings(), values), layout=CURRENT_LAYOUT)


def describe_continued(job: Job) -> Description:
    """Return the same for a job that may go on with a dataset, in the layout that this has."""
    output = job.output
    places = (output.folder, output.url) if output.url else (output.folder,)
    has = [layout for place in places if (layout := layout_of(place))]
    return replace(describe_job(job), layout=min(has, default=CURRENT_LAYOUT))


def layout_of(place: str | Path) -> int | None:
    """Return the layout of the dataset at a place, or None if there is no shard of one.

    Without a description a manifest tells it, for columns had blanks in layout 1 alone.
    """
    try:
        if (said := read_description(place)) and said.committed:
            return said.layout
    except ValueError:
        pass
    first = next(read_manifests(place, damaged="skip"), None)
    if first is None:
        return None
    return CURRENT_LAYOUT if first.scores and not any(" " in each for each in first.scores) else 1


def read_description(place: str | Path) -> Description | None:
    """Return what stands at a place, or None. Raise ValueError if it is damaged."""
    there = files_at(place)
    return (
        decode_checksummed(there.read(DESCRIPTION_FILE), Description)
        if there.exists(DESCRIPTION_FILE)
        else None
    )


def stored_job(folder: Path) -> Job | None:
    """Return the job whose run lies beside a dataset, or None; with a warning if it is damaged."""
    path = folder / "run" / "job.json"
    try:
        return _sound(path, Job.stored(path))
    except DamagedJob as error:
        _warn_once(path, error.__cause__ or error)
        return None


def find_description(place: str | Path) -> Description | None:
    """Return the same, or None with a warning if it is damaged."""
    path = f"{files_at(place).place}/{DESCRIPTION_FILE}"
    try:
        return _sound(path, read_description(place))
    except ValueError as error:
        _warn_once(path, error)
        return None


def _sound(path: str | Path, read: _T) -> _T:
    _told.discard(str(path))
    return read


def _warn_once(path: str | Path, error: BaseException) -> None:
    """Warn of a damaged file, once until it is sound again."""
    if str(path) not in _told:
        _told.add(str(path))
        _log.warning("%s is damaged (%s), and is made anew.", path, str(error).rstrip("."))


def write_description(place: str | Path, description: Description) -> None:
    """Write it, whole or not at all, if it says something else than what stands there."""
    try:
        if read_description(place) == description:
            return
    except ValueError:
        pass
    files_at(place).write(DESCRIPTION_FILE, encode_checksummed(description))


def require_same_settings(
    job: Job, place: str | Path, there: Description | None, *, files_known: bool = True
) -> None:
    """Raise ConfigError if another job made a dataset; ``there`` is its description, if any.

    Without ``files_known`` the job's files are another machine's, and are not compared.
    """
    if there and there.committed and there.settings is not None:
        compared = [each for each in settings() if files_known or not each.option.file]
        has, wants = (
            {each.name: side[each.name] for each in compared if each.name in side}
            for side in (there.settings, job.fingerprint())
        )
        found = differences(compared, has, wants)
        job.require_same(found, files_at(place).place)


def commit_shards(
    place: str | Path,
    ours: Description,
    shards: Iterable[str] = (),
    pages: Mapping[str, FileRecord] | None = None,
) -> None:
    """Add shards and pages to the description at a place; raise as `merge_descriptions` does."""
    write_description(place, merge_descriptions(place, ours, shards, pages))


def merge_descriptions(
    place: str | Path,
    ours: Description,
    shards: Iterable[str] = (),
    pages: Mapping[str, FileRecord] | None = None,
) -> Description:
    """Return what is to stand at a place when shards and pages were added.

    Shards that others brought stay listed: at a URL, a machine that was taken for lost may still
    be at work. Raise RunError if it is another job's by now.
    """
    there = find_description(place) or Description()
    if there.committed and there.digest not in ("", ours.digest):
        raise RunError(
            f"{files_at(place).place} now belongs to a job with other settings; what was not "
            "uploaded yet stays in this run's folder."
        )
    return replace(
        ours,
        committed=tuple(sorted({*there.committed, *shards})),
        pages={**there.pages, **(pages or {})},
    )


def forget_shards(place: str | Path, shards: Collection[str]) -> None:
    """Take shards off the list at a place."""
    if there := find_description(place):
        left = tuple(each for each in there.committed if each not in shards)
        write_description(place, replace(there, committed=left))


def displayed_settings(description: Description) -> dict[str, Any]:
    """Return the settings as texts for people: files by their names."""
    return {name: _named(value) for name, value in (description.settings or {}).items()}


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(each) for each in value]
    return value["name"] if isinstance(value, Mapping) else value
