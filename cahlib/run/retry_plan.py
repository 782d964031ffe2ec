"""Plan a retry: which links of a dataset failed, by its outcomes, and the shards to fetch them.

A link's last attempt counts. What earlier attempts brought is not read or written again.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from cahlib.core.atomic import write_file
from cahlib.core.config import Crawl, Job
from cahlib.core.errors import ConfigError, RunError, ShardError
from cahlib.core.lists import md5_digest
from cahlib.core.records import ERASED_REASONS, Candidate, Shard, Stage
from cahlib.core.retry_shards import (
    RETRYABLE_REASONS,
    Retry,
    attempt_id,
    parse_attempt,
    parse_retry,
)
from cahlib.core.run_directory import RunDirectory
from cahlib.core.wording import plural
from cahlib.crawl.blocklists import Blocklists
from cahlib.crawl.failed_links import write_failed_links
from cahlib.crawl.tables.slices import Slices
from cahlib.dataset.inventory import Inventory
from cahlib.dataset.manifest import (
    ShardManifest,
    has_outcomes,
    no_dataset_error,
    read_manifest,
    read_manifests,
)
from cahlib.dataset.outcomes import read_outcomes, restore_candidate
from cahlib.parcel.metadata import INVALID_JSON

#: Where a dataset's folder has the plan of a retry that is not done.
_PLAN = str(RunDirectory().path / "retry.json")
_decoder = msgspec.json.Decoder(list[Shard])

#: The role of a run that retries.
RETRY = "retry"

#: Seconds in the units of an age.
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([mhdw])")

#: The manifests of the attempts at one shard, by number; None for a damaged one.
_Attempts: TypeAlias = dict[int, ShardManifest | None]

_RETRYABLE = {each.value for each in RETRYABLE_REASONS}


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPlan:
    """The links of a dataset to fetch again."""

    shards: tuple[Shard, ...] = ()
    links: Counter[str]  #: by why they failed
    notes: tuple[str, ...] = ()  #: what was left out, a sentence each
    begun: int = 0  #: shards of a retry that was interrupted, of which these are left


def parse_age(text: str) -> float:
    """Return the seconds of an age such as 7d or 12h; raise ConfigError."""
    found = _AGE.fullmatch(text.strip().lower())
    if not found:
        raise ConfigError(
            f"older-than: {text!r} is not an age; give a number with m, h, d or w, such as 7d."
        )
    return float(found[1]) * _UNITS[found[2]]


def plan_retry(
    job: Job, reasons: Collection[str], *, before: float, blocked: Blocklists
) -> RetryPlan:
    """Return the plan for links that failed for these reasons ``before`` a time (since 1970).

    A retry for the same reasons that was interrupted goes on with what is left of it. Raise
    ConfigError for a place without a dataset, or for one without outcomes.
    """
    place = job.output.url or job.output.folder
    attempts, unknown = _attempts(place)
    damaged = [
        attempt_id(first, number)
        for first, made in attempts.items()
        for number, manifest in made.items()
        if manifest is None
    ]
    begun = _stored_plan(job.output.folder, reasons)
    wanted = [
        retry
        for each in begun
        if (retry := parse_retry(each)) and retry.number not in attempts[retry.first.id]
    ]
    if not begun:
        sound = (made for made in attempts.values() if None not in made.values())
        wanted = [retry for made in sound if (retry := _next_attempt(made, reasons, before))]
    shards, links = list[Shard](), Counter[str]()
    for retry in wanted:
        try:
            found = Counter(link.reason for link in _chosen(place, retry, blocked).values())
        except ShardError:
            damaged.append(retry.first.id)
            continue
        links += found
        shards += [retry.shard] if found else []
    return RetryPlan(
        shards=tuple(shards),
        links=links,
        notes=tuple(_notes(unknown, damaged)),
        begun=len(begun),
    )


def _attempts(place: str | Path) -> tuple[Mapping[str, _Attempts], int]:
    """Return the attempts at each shard by its id, and how many of them lack their outcomes."""
    there, attempts = Inventory(place), defaultdict[str, _Attempts](dict)
    known = Counter[bool]()
    for id in there.ids():
        first, number = parse_attempt(id)
        state = there.shard(id)
        attempts[first][number] = None if state.fault else state.manifest
        if state.manifest:
            known[_tells_outcomes(state.manifest)] += 1
    if not attempts:
        raise no_dataset_error(place)
    if known[False] and not known[True]:
        raise ConfigError(
            f"{place} has no outcomes, so it is not known which links failed; only shards made "
            "with --outcomes yes, by this version of cahlib or a later one, can be retried."
        )
    return attempts, known[False]


def store_plan(folder: Path, plan: RetryPlan) -> None:
    """Store a plan in a dataset's run directory, so that it goes on if it is interrupted."""
    if plan.shards and not plan.begun:
        write_file(folder / _PLAN, msgspec.json.encode(plan.shards))


def forget_plan(folder: Path, plan: RetryPlan) -> None:
    """Delete a plan that is stored, as it is done."""
    if plan.shards or plan.begun:
        (folder / _PLAN).unlink(missing_ok=True)


def _stored_plan(folder: Path, reasons: Collection[str]) -> list[Shard]:
    """Return the shards of a plan that was interrupted, if it is for the same reasons."""
    try:
        shards = _decoder.decode((folder / _PLAN).read_bytes())
    except (FileNotFoundError, *INVALID_JSON):
        return []
    retries = [parse_retry(each) for each in shards]
    return shards if all(each and {*each.reasons} == {*reasons} for each in retries) else []


def _notes(unknown: int, damaged: Collection[str]) -> Iterator[str]:
    if unknown:
        yield f"Links of {plural(unknown, 'shard')} without outcomes are left out."
    if damaged:
        yield (
            f"Links of {plural(len(damaged), 'damaged shard')} are left out (first: "
            f"{min(damaged)}); `cah repair` removes what is damaged."
        )


def _tells_outcomes(manifest: ShardManifest) -> bool:
    """Return whether the outcomes of all candidates of a shard are known."""
    return has_outcomes(manifest) or not manifest.stats.left[Stage.CHOOSE]


def _next_attempt(made: _Attempts, reasons: Collection[str], before: float) -> Retry | None:
    """Return the next attempt at links of a shard, or None if no link can need it."""
    manifests = {number: each for number, each in sorted(made.items()) if each}
    old = {
        attempt: each
        for attempt, each in manifests.items()
        if each.scraped <= before
        and any(number and reason.value in reasons for reason, number in each.stats.dropped.items())
    }
    if not old:
        return None
    first = next(iter(manifests.values()))
    known = parse_retry(first.shard)  # the first attempt may have been removed since
    return Retry(
        first=known.first if known else first.shard,
        number=max(manifests) + 1,
        reasons=tuple(reasons),
        attempts=tuple(old),
    )


def failed_links(place: str | Path, retry: Retry, blocked: Blocklists) -> list[Candidate]:
    """Return the links of a retry, in the order of their attempts and positions.

    Raise ShardError if the outcomes cannot be read.
    """
    chosen = _chosen(place, retry, blocked)
    found = list[Candidate]()
    for number in retry.attempts:
        id = attempt_id(retry.first.id, number)
        for row in _rows(place, id):
            if (link := chosen.get(row["uid"])) and link.attempt == number:
                found.append(replace(_restored(row, id), position=len(found)))
    return found


def _restored(row: Mapping[str, Any], id: str) -> Candidate:
    """Return the candidate of a row; raise ShardError for one that a shard cannot have."""
    try:
        candidate = restore_candidate(row)
        if md5_digest(candidate.url + candidate.text).hex() == candidate.uid:
            return candidate
        cause = "a link has another's key"
    except (KeyError, TypeError, ValueError) as error:
        cause = str(error)
    raise ShardError(f"The outcomes of {id} are damaged ({cause}).")


def harmful_links(folder: Path, blocked: Blocklists) -> set[str]:
    """Return the links that failed first and turned out to be harmful by a retry, by uid.

    Outcomes do not name these: they are the links of a retry that its own do not have.
    """
    found = set[str]()
    for manifest in read_manifests(folder, damaged="skip"):
        retry = parse_retry(manifest.shard)
        if retry and any(manifest.stats.dropped[reason] for reason in ERASED_REASONS):
            named = {row["uid"] for row in _rows(folder, manifest.shard.id, ["uid", "reason"])}
            found |= _chosen(folder, retry, blocked).keys() - named
    return found


class _FailedLink(NamedTuple):
    """A link whose last attempt failed."""

    attempt: int
    reason: str
    url: str


def _chosen(place: str | Path, retry: Retry, blocked: Blocklists) -> dict[str, _FailedLink]:
    """Return the links of a retry that no blocklist has, by uid."""
    return {
        uid: link
        for uid, link in _failed_before(place, retry).items()
        if _is_of(link, retry) and not (blocked.url_drop_reason(link.url) or blocked.has_pair(uid))
    }


def _failed_before(place: str | Path, retry: Retry) -> dict[str, _FailedLink]:
    """Return the links whose last attempt before a retry failed, by uid.

    All links that an attempt was to fetch count as tried: outcomes do not name harmful ones.
    """
    failed: dict[str, _FailedLink] = {}
    for number in range(retry.number):
        id = attempt_id(retry.first.id, number)
        if (manifest := read_manifest(place, id)) is None:  # a repair removed it
            continue
        if earlier := parse_retry(manifest.shard):
            failed = {uid: link for uid, link in failed.items() if not _is_of(link, earlier)}
        for row in _rows(place, id, ["uid", "reason", "url"]):
            failed.pop(row["uid"], None)
            if row["uid"] and row["reason"] in _RETRYABLE:  # not if it is erased
                failed[row["uid"]] = _FailedLink(number, row["reason"], row["url"])
    return failed


def _is_of(link: _FailedLink, retry: Retry) -> bool:
    return link.reason in retry.reasons and link.attempt in retry.attempts


def _rows(
    place: str | Path, id: str, columns: Sequence[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the outcomes of a shard that can matter to a retry; raise ShardError."""
    try:
        if manifest := read_manifest(place, id):
            for batch in read_outcomes(place, manifest, columns):
                failed = pc.is_in(batch.column("reason"), value_set=pa.array([*_RETRYABLE]))
                yield from (
                    batch.filter(failed) if parse_attempt(id)[1] == 0 else batch
                ).to_pylist()
    except (RunError, OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ShardError(f"The outcomes of {id} cannot be read ({error}).") from error


class FailedLinks(Slices):
    """The slices of a run that may have retries: of these, the failed links."""

    def __init__(self, folder: Path, job: Job) -> None:
        """``folder`` is the dataset's."""
        super().__init__(RunDirectory(folder).slices, job.download.contact)
        self._place, self._blocked = folder, Blocklists.load(job.crawl)

    def cut(
        self, shard: Shard, crawl: Crawl, failed: Callable[[Shard, Exception], object]
    ) -> Crawl | None:
        """Return the settings with which a shard is scraped, as `Slices` does."""
        if (retry := parse_retry(shard)) is None:
            return super().cut(shard, crawl, failed)
        try:
            links = failed_links(self._place, retry, self._blocked)
        except ShardError as error:
            failed(shard, error)
            return None
        path = self.path(shard)
        write_failed_links(path, links)
        return replace(crawl, links=(str(path),))
