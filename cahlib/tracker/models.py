"""A tracker's rules, records and errors, and the validation of what workers send."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cahlib.core.errors import CahError
from cahlib.core.records import DROP_REASONS, DropReason, Shard, Stage, Stats
from cahlib.ledger.client import is_below_upload_url

#: Sample ids that one WAT file spans, as at Crawling@Home.
IDS_PER_WAT = 1_000_000
#: Most pairs that a completion can name, whatever a tracker allows.
MAX_PAIRS = 100_000


class WorkerKind(Enum):
    """A kind of worker."""

    HYBRID = "hybrid"  # scrapes and judges
    CPU = "cpu"  # scrapes, and delivers a parcel
    GPU = "gpu"  # judges a parcel

    @property
    def takes(self) -> str:
        """The state of shards that it can lease."""
        return "scraped" if self is WorkerKind.GPU else "todo"

    @property
    def holds(self) -> str:
        """The state of shards that it has leased."""
        return "judging" if self is WorkerKind.GPU else "leased"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerRules:
    """The rules by which a tracker treats its workers."""

    lease_seconds: float = 900  #: without a heartbeat, after which a lease expires
    #: the same for the legacy protocol, whose workers report only finished steps
    legacy_lease_seconds: float = 7200
    max_failures: int = 3  #: workers that must fail with a shard before it is set aside
    max_attempts: int = 10  #: leases after which it is set aside, however they ended
    #: pairs of a shard: LAION found about 17,000 candidates in a whole WAT file
    max_pairs: int = 20_000
    max_held: int = 256  #: shards that one worker may hold
    verify_share: float = 0  #: of finished shards, 0 … 1, that another person repeats
    upload_url: str = ""  #: where CPU workers upload parcels, as fsspec understands it
    legacy_upload: str = ""  #: the same for the legacy protocol: an argument for rsync


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker that has joined."""

    id: int
    name: str  #: unique, chosen by the tracker
    nickname: str
    kind: WorkerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A shard that a worker holds."""

    number: int
    shard: Shard
    expires: float
    parcel: (
        dict[str, Any] | None
    )  #: for a GPU worker: url, and of our own workers also sha256 and size


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """A worker's report of a completed shard."""

    pairs: int
    uids: tuple[bytes, ...] | None = (
        None  #: the pairs; None in the legacy protocol, which names none
    )
    similarities: tuple[float, ...] | None = None  #: one per pair, if known
    stats: Stats | None = None
    output: str = ""  #: where the worker says the pairs are

    def scores(self, late: Collection[bytes] = ()) -> dict[str, float | None] | None:
        """Return similarities by uid without the ``late`` pairs; None where unknown."""
        if self.uids is None:
            return None
        scores = zip(self.uids, self.similarities or [None] * len(self.uids), strict=True)
        return {uid.hex(): score for uid, score in scores if uid not in late}

    def stored_stats(self, *, late: int = 0) -> dict[str, Any] | None:
        """Return the stats to store, less ``late`` pairs that another shard brought first."""
        if self.stats is None:
            return None
        values = self.stats.as_dict()
        if not late:
            return values
        found = Stats.from_dict(values)
        found.left[Stage.JUDGE] -= late
        found.dropped[DropReason.PAIR_SEEN] += late
        return found.as_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionResult:
    """The tracker's answer to a completion."""

    counted: bool  #: False if it was known before
    late: tuple[bytes, ...]  #: pairs that another shard brought first


class ApiError(CahError):
    """A request is rejected, for the reason in the text."""

    status = 400  #: of HTTP
    legacy_status = 400  #: the same in the legacy protocol


class UnknownWorker(ApiError):
    """There is no worker with this secret, or it was expelled."""

    status, legacy_status = 401, 404


class NotFound(ApiError):
    """The thing that the request names does not exist."""

    status, legacy_status = 404, 404


class NotHeld(ApiError):
    """The worker does not hold this shard."""

    status, legacy_status = 409, 403


class NicknameTaken(ApiError):
    """The nickname belongs to someone else."""

    status, legacy_status = 409, 400


class InvalidRequest(ApiError):
    """The values in a request are not valid."""

    status, legacy_status = 422, 400


class MalformedRequest(ApiError):
    """The body of a request cannot be parsed."""


class OutdatedWorker(ApiError):
    """The worker is older than this tracker's protocol."""

    status = 426

    def __init__(self) -> None:
        super().__init__(
            "This worker is too old for this tracker, which needs the uids and similarities of "
            "each shard's pairs; upgrade cahlib (pip install --upgrade) and restart the worker."
        )


def clean_text(text: str, max_length: int) -> str:
    """Return a text of strangers on one line, without control characters, cut to a length."""
    shown = (c if unicodedata.category(c)[0] != "C" else " " for c in text[: 4 * max_length])
    return " ".join("".join(shown).split())[:max_length]


def check_pair_count(count: int, rules: TrackerRules) -> int:
    """Return a shard's number of pairs; raise InvalidRequest if it cannot be."""
    if not 0 <= count <= rules.max_pairs:
        raise InvalidRequest(f"pairs: a shard has 0 to {rules.max_pairs:,} pairs, not {count:,}.")
    return count


_HEX = re.compile("[0-9a-f]*")


def parse_uids(uids: Sequence[str]) -> tuple[bytes, ...]:
    """Return uids as bytes; raise InvalidRequest if one is malformed or repeated."""
    joined = "".join(uids)
    if any(len(each) != 32 for each in uids) or not _HEX.fullmatch(joined):
        raise InvalidRequest("uids: each must be 32 hex digits, the md5 of url + text.")
    keys = bytes.fromhex(joined)
    found = tuple(keys[start : start + 16] for start in range(0, len(keys), 16))
    if len(set(found)) < len(found):
        raise InvalidRequest("uids: a pair is repeated; send each uid once.")
    return found


def check_parcel_url(url: str, upload_url: str) -> None:
    """Raise InvalidRequest unless a parcel's URL is below the upload URL.

    GPU workers read a parcel, and delete it.
    """
    if not upload_url:
        raise InvalidRequest("url: this tracker accepts no parcels; it has no upload URL.")
    if not is_below_upload_url(url, upload_url):
        raise InvalidRequest(f"url: upload parcels to {upload_url.rstrip('/')}/.")


def parse_stats(values: Mapping[str, Any], *, pairs: int | None = None) -> Stats:
    """Return a shard's stats, those of scraping only if ``pairs`` is None.

    Raise InvalidRequest unless at each stage what entered either left or was dropped.
    """
    found = _decode_stats(values)
    stages = [Stage.READ, Stage.CHOOSE, Stage.FETCH]
    if pairs is not None:
        stages.append(Stage.JUDGE)
        if found.left[Stage.JUDGE] != pairs:
            raise InvalidRequest("tally: judge.out is not the number of uids.")
    for stage in stages:
        if found.unaccounted(stage):
            raise InvalidRequest(f"tally: {stage.value}.in is not {stage.value}.out plus lost.")
    for before, after in ((Stage.CHOOSE, Stage.FETCH), (Stage.FETCH, Stage.JUDGE)):
        if after in stages and found.entered[after] != found.left[before]:
            raise InvalidRequest(f"tally: {after.value}.in is not {before.value}.out.")
    return found


#: More than a WAT file can hold of anything (about 160 MB, 30,000 pages).
_MAX_COUNT = 100_000_000


def _decode_stats(values: Mapping[str, Any]) -> Stats:
    found = Stats()
    for name, counts in values.items():
        stage = next((stage for stage in Stage if stage.value == name), None)
        if stage is None or not isinstance(counts, dict):
            raise InvalidRequest("tally: it must have the form {stage: {in, out, lost}}.")
        found.entered[stage] = _decode_count(counts.get("in"))
        found.left[stage] = _decode_count(counts.get("out"))
        dropped = counts.get("lost", {})
        reasons = DROP_REASONS[stage]
        if not isinstance(dropped, dict) or not dropped.keys() <= reasons.keys():
            raise InvalidRequest(f"tally: {stage.value}.lost has an unknown reason.")
        found.dropped.update({reasons[name]: _decode_count(n) for name, n in dropped.items()})
    return found


def _decode_count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise InvalidRequest(f"tally: each count must be an integer from 0 to {_MAX_COUNT:,}.")
    return value
