"""dataset.json: the settings that made a dataset, and the list of its committed shards.

It is in the dataset's folder, here and at a URL, so that a dataset that was copied without its
`run` folder still has its settings, and a lost shard is noticed. A shard's manifest is decisive:
one that is not on the list was committed by a run that was killed before it could update the list.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from cahlib import __version__
from cahlib.core.config import DamagedJob, Job, settings
from cahlib.core.errors import RunError
from cahlib.core.fingerprint import setting_differences, settings_digest
from cahlib.core.run_directory import RunDirectory
from cahlib.dataset.checksummed_json import decode_checksummed, encode_checksummed
from cahlib.dataset.layout import CURRENT_LAYOUT
from cahlib.dataset.manifest import read_manifests
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.hashed_file import FileRecord

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_warned = set[str]()  # damaged files

DESCRIPTION_FILE = "dataset.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The content of dataset.json."""

    #: those that decide what is in it, by name (`cahlib.core.fingerprint`); None if unknown
    settings: Mapping[str, Any] | None = None
    digest: str = ""  #: of the settings, as in each manifest
    committed: tuple[str, ...] = ()  #: ids of shards, sorted
    #: the report and the card as last written
    pages: Mapping[str, FileRecord] = field(default_factory=dict)
    version: str = __version__  #: of the cahlib that wrote it
    layout: int = 1  #: 1 to `CURRENT_LAYOUT`


_decoder = msgspec.json.Decoder(Description)


def describe_job(job: Job) -> Description:
    """Return the description of a job's dataset before its first shard."""
    values = job.fingerprint()
    return Description(
        settings=values, digest=settings_digest(settings(), values), layout=CURRENT_LAYOUT
    )


def describe_continued(job: Job) -> Description:
    """Return the same for a job that may continue a dataset, in the layout of that."""
    output = job.output
    places = (output.folder, output.url) if output.url else (output.folder,)
    has = [layout for place in places if (layout := layout_of(place))]
    return replace(describe_job(job), layout=min(has, default=CURRENT_LAYOUT))


def layout_of(place: str | Path) -> int | None:
    """Return the layout of the dataset at a place, or None if it has no shard.

    Without a description, as after a kill between the first manifest and that, a manifest knows it;
    in those of an older cahlib the columns of scores tell: only in layout 1 had they blanks.
    """
    try:
        if (said := read_description(place)) and said.committed:
            return said.layout
    except ValueError:
        pass
    first = next(read_manifests(place, damaged="skip"), None)
    if first is None:
        return None
    is_second = first.scores and not any(" " in each for each in first.scores)
    return first.layout or (2 if is_second else 1)


def read_description(place: str | Path) -> Description | None:
    """Return the description at a place, or None; raise ValueError if it is damaged."""
    there = files_at(place)
    return (
        decode_checksummed(there.read(DESCRIPTION_FILE), _decoder)
        if there.exists(DESCRIPTION_FILE)
        else None
    )


def stored_job(folder: Path) -> Job | None:
    """Return the stored job of a dataset's run, or None, with a warning if it is damaged."""
    path = RunDirectory(folder).job
    try:
        return _sound(path, Job.stored(path))
    except DamagedJob as error:
        _warn_once(path, error.__cause__ or error)
        return None


def find_description(place: str | Path) -> Description | None:
    """Return the description at a place, or None, with a warning if it is damaged."""
    path = f"{files_at(place).place}/{DESCRIPTION_FILE}"
    try:
        return _sound(path, read_description(place))
    except ValueError as error:
        _warn_once(path, error)
        return None


def _sound(path: str | Path, read: _T) -> _T:
    _warned.discard(str(path))
    return read


def _warn_once(path: str | Path, error: BaseException) -> None:
    """Warn of a damaged file, once until it is sound again."""
    if str(path) not in _warned:
        _warned.add(str(path))
        _log.warning("%s is damaged (%s) and will be rewritten.", path, str(error).rstrip("."))


def write_description(place: str | Path, description: Description) -> None:
    """Write the description, if it differs from that at the place."""
    try:
        if read_description(place) == description:
            return
    except ValueError:
        pass
    files_at(place).write(DESCRIPTION_FILE, encode_checksummed(description))


def require_same_settings(
    job: Job, place: str | Path, there: Description | None, *, files_known: bool = True
) -> None:
    """Raise ConfigError if a job with other settings made a dataset, described by ``there``.

    Without ``files_known`` the job's files are another machine's, and are not compared.
    """
    if there and there.committed and there.settings is not None:
        compared = [each for each in settings() if files_known or not each.option.file]
        has, wants = (
            {each.name: side[each.name] for each in compared if each.name in side}
            for side in (there.settings, job.fingerprint())
        )
        found = setting_differences(compared, has, wants)
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
    """Return the description of a place with shards and pages added.

    Shards that others uploaded stay listed: at a URL, a machine that was presumed lost may still be
    working. Raise RunError if the place belongs to another job by now.
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
    """Remove shards from the list at a place."""
    if there := find_description(place):
        left = tuple(each for each in there.committed if each not in shards)
        write_description(place, replace(there, committed=left))


def displayed_settings(description: Description) -> dict[str, Any]:
    """Return the settings for display: files by their names."""
    return {name: _named(value) for name, value in (description.settings or {}).items()}


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(each) for each in value]
    return value["name"] if isinstance(value, Mapping) else value
