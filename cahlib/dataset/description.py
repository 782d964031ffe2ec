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
from cahlib.dataset import checksummed_json, manifest
from cahlib.dataset.layout import CURRENT_LAYOUT
from cahlib.dataset.storage.files import files
from cahlib.dataset.storage.hashed_file import Stored
from cahlib.errors import RunError
from cahlib.fingerprint import differences, digest

_log = logging.getLogger(__name__)

T = TypeVar("T")

_told = set[str]()  # of which damaged files users know

NAME = "dataset.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The record of what a dataset says of itself."""

    #: that decide what is in it, by name (`cahlib.fingerprint`); None if nobody knows them
    settings: Mapping[str, Any] | None = None
    digest: str = ""  #: of the settings, as each manifest carries it
    committed: tuple[str, ...] = ()  #: ids of shards, sorted
    #: the report and the card as they were written last
    pages: Mapping[str, Stored] = field(default_factory=dict)
    version: str = __version__  #: of the cahlib that wrote it
    layout: int = 1  #: which layout it has, up to `CURRENT_LAYOUT`


def of(job: Job) -> Description:
    """Return the description of a job's dataset before its first shard."""
    values = job.fingerprint()
    return Description(settings=values, digest=digest(settings(), values), layout=CURRENT_LAYOUT)


def continued(job: Job) -> Description:
    """Return the same for a job that may go on with a dataset, in the layout that this has."""
    output = job.output
    places = (output.folder, output.url) if output.url else (output.folder,)
    has = [layout for place in places if (layout := layout_of(place))]
    return replace(of(job), layout=min(has, default=CURRENT_LAYOUT))


def layout_of(place: str | Path) -> int | None:
    """Return the layout of the dataset at a place, or None if there is no shard of one.

    Without a description a manifest tells it, for columns had blanks in layout 1 alone.
    """
    try:
        if (said := read(place)) and said.committed:
            return said.layout
    except ValueError:
        pass
    first = next(manifest.seals(place, damaged="skip"), None)
    if first is None:
        return None
    return CURRENT_LAYOUT if first.scores and not any(" " in each for each in first.scores) else 1


def read(place: str | Path) -> Description | None:
    """Return what stands at a place, or None. Raise ValueError if it is damaged."""
    there = files(place)
    return checksummed_json.unpacked(there.read(NAME), Description) if there.exists(NAME) else None


def job(folder: Path) -> Job | None:
    """Return the job whose run lies beside a dataset, or None; with a warning if it is damaged."""
    path = folder / "run" / "job.json"
    try:
        return _sound(path, Job.stored(path))
    except DamagedJob as error:
        _warn_once(path, error.__cause__ or error)
        return None


def found(place: str | Path) -> Description | None:
    """Return the same, or None with a warning if it is damaged."""
    path = f"{files(place).place}/{NAME}"
    try:
        return _sound(path, read(place))
    except ValueError as error:
        _warn_once(path, error)
        return None


def _sound(path: str | Path, read: T) -> T:
    _told.discard(str(path))
    return read


def _warn_once(path: str | Path, error: BaseException) -> None:
    """Warn of a damaged file, once until it is sound again."""
    if str(path) not in _told:
        _told.add(str(path))
        _log.warning("%s is damaged (%s), and is made anew.", path, str(error).rstrip("."))


def write(place: str | Path, description: Description) -> None:
    """Write it, whole or not at all, if it says something else than what stands there."""
    try:
        if read(place) == description:
            return
    except ValueError:
        pass
    files(place).write(NAME, checksummed_json.packed(description))


def require_same(
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
        job.require_same(found, files(place).place)


def commit(
    place: str | Path,
    ours: Description,
    shards: Iterable[str] = (),
    pages: Mapping[str, Stored] | None = None,
) -> None:
    """Add shards, and what the pages are, to what stands at a place; raise as `merged` does."""
    write(place, merged(place, ours, shards, pages))


def merged(
    place: str | Path,
    ours: Description,
    shards: Iterable[str] = (),
    pages: Mapping[str, Stored] | None = None,
) -> Description:
    """Return what is to stand at a place when shards and pages were added.

    Shards that others brought stay listed: at a URL, a machine that was taken for lost may still
    be at work. Raise RunError if it is another job's by now.
    """
    there = found(place) or Description()
    if there.committed and there.digest not in ("", ours.digest):
        raise RunError(
            f"{files(place).place} has become the dataset of a job with other settings; what this "
            "run has not brought there yet stays in its folder."
        )
    return replace(
        ours,
        committed=tuple(sorted({*there.committed, *shards})),
        pages={**there.pages, **(pages or {})},
    )


def forget(place: str | Path, shards: Collection[str]) -> None:
    """Take shards off the list at a place."""
    if there := found(place):
        left = tuple(each for each in there.committed if each not in shards)
        write(place, replace(there, committed=left))


def shown(description: Description) -> dict[str, Any]:
    """Return the settings as texts for people: files by their names."""
    return {name: _named(value) for name, value in (description.settings or {}).items()}


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(each) for each in value]
    return value["name"] if isinstance(value, Mapping) else value
