"""What a tracker allows: its records and refusals, and the checks of what people send."""

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
IDS = 1_000_000
#: Pairs that a completion can name at most, whatever a tracker allows.
MOST_PAIRS = 100_000


class Kind(Enum):
    """What a worker does."""

    HYBRID = "hybrid"  # scrapes and judges
    CPU = "cpu"  # scrapes, and brings a parcel
    GPU = "gpu"  # judges a parcel

    @property
    def takes(self) -> str:
        """The state of the shards it can lease."""
        return "scraped" if self is Kind.GPU else "todo"

    @property
    def holds(self) -> str:
        """The state of the shards it has leased."""
        return "judging" if self is Kind.GPU else "leased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a tracker treats its workers."""

    lease: float = 900  #: seconds without a sign of life after which a shard is another's
    #: the same for the old protocol, whose workers only tell when a step is finished
    old_lease: float = 7200
    failures: int = 3  #: workers that must fail with a shard before it is set aside
    attempts: int = 10  #: leases after which it is set aside, whatever became of them
    #: a shard's most pairs: LAION found about 17,000 candidates in a whole WAT file
    most_pairs: int = 20_000
    most_held: int = 256  #: shards that one worker may hold
    verify: float = 0  #: share of finished shards that somebody else does again, 0 … 1
    upload: str = ""  #: where CPU workers bring their parcels: a URL that fsspec knows
    old_upload: str = ""  #: the same for the old protocol: what its clients hand to rsync


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Somebody who works on shards."""

    id: int
    name: str  #: unique, made by the tracker
    nickname: str
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A shard that a worker holds."""

    number: int
    shard: Shard
    expires: float
    parcel: dict[str, Any] | None  #: for a GPU worker: url, and of our own workers sha256 and size


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a worker made of a shard."""

    pairs: int
    uids: tuple[bytes, ...] | None = None  #: the pairs; None by the old protocol, which names none
    similarities: tuple[float, ...] | None = None  #: one for each pair, if they are known
    stats: Stats | None = None
    output: str = ""  #: where the pairs are, as the worker says

    def scores(self, late: Collection[bytes] = ()) -> dict[str, float | None] | None:
        """Return similarities by uid, but those of the ``late`` pairs; None where not known."""
        if self.uids is None:
            return None
        scores = zip(self.uids, self.similarities or [None] * len(self.uids), strict=True)
        return {uid.hex(): score for uid, score in scores if uid not in late}

    def account(self, *, late: int = 0) -> dict[str, Any] | None:
        """Return the stats to store, without pairs that another shard was first to bring."""
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
class Closed:
    """What became of a completion."""

    counted: bool  #: False if it was known already
    lost: tuple[bytes, ...]  #: pairs that another shard was first to bring


class Refusal(CahError):
    """A worker asked for something that it cannot have; the text says why."""

    status = 400  #: of HTTP
    old_status = 400  #: the same in the old protocol


class Unknown(Refusal):
    """There is no such worker (any more)."""

    status, old_status = 401, 404


class Missing(Refusal):
    """There is no such thing."""

    status, old_status = 404, 404


class NotHeld(Refusal):
    """The worker does not hold this shard."""

    status, old_status = 409, 403


class Owned(Refusal):
    """The nickname is somebody else's."""

    status, old_status = 409, 400


class Invalid(Refusal):
    """What was sent cannot be true."""

    status, old_status = 422, 400


class Malformed(Refusal):
    """What was sent cannot be read."""


class Outdated(Refusal):
    """The worker is older than this tracker's protocol."""

    status = 426

    def __init__(self) -> None:
        super().__init__(
            "This worker is too old for this tracker, which has to know the pairs of each shard "
            "and their similarities; update cahlib (pip install --upgrade) and start it again."
        )


def sentence(text: str, most: int) -> str:
    """A text of others, without what a database or a log cannot hold, cut to a length."""
    shown = (c if unicodedata.category(c)[0] != "C" else " " for c in text[: 4 * most])
    return " ".join("".join(shown).split())[:most]


def pairs(count: int, rules: Rules) -> int:
    """A count of pairs that a shard can hold; raises Invalid."""
    if not 0 <= count <= rules.most_pairs:
        raise Invalid(f"pairs: a shard holds 0 to {rules.most_pairs:,} of them, not {count:,}.")
    return count


_HEX = re.compile("[0-9a-f]*")


def uids(named: Sequence[str]) -> tuple[bytes, ...]:
    """Return the keys of pairs; raise Invalid if one is none, or is named twice."""
    every = "".join(named)
    if any(len(each) != 32 for each in named) or not _HEX.fullmatch(every):
        raise Invalid("uids: each is 32 hex digits, the md5 of url + text.")
    keys = bytes.fromhex(every)
    found = tuple(keys[start : start + 16] for start in range(0, len(keys), 16))
    if len(set(found)) < len(found):
        raise Invalid("uids: name each pair once.")
    return found


def place(url: str, upload: str) -> str:
    """Where a parcel is: GPU workers open it, and remove it, so nowhere else; raises Invalid."""
    if not upload:
        raise Invalid("url: this tracker names no place for parcels.")
    if not is_below_upload_url(url, upload):
        raise Invalid(f"url: a parcel is brought to {upload.rstrip('/')}/, and nowhere else.")
    return url


def stats(values: Mapping[str, Any], *, pairs: int | None = None) -> Stats:
    """A shard's account, with nothing unaccounted for in it; without pairs, of its scraping only.

    Raises Invalid.
    """
    found = _read(values)
    stages = [Stage.READ, Stage.CHOOSE, Stage.FETCH]
    if pairs is not None:
        stages.append(Stage.JUDGE)
        if found.left[Stage.JUDGE] != pairs:
            raise Invalid("tally: the pairs that left judge are not as many as you say.")
    for stage in stages:
        if found.unaccounted(stage):
            raise Invalid(f"tally: at {stage.value}, what came in is not what went out plus lost.")
    for before, after in ((Stage.CHOOSE, Stage.FETCH), (Stage.FETCH, Stage.JUDGE)):
        if after in stages and found.entered[after] != found.left[before]:
            raise Invalid(f"tally: what left {before.value} is not what entered {after.value}.")
    return found


#: More of anything than a WAT file can hold (about 160 MB, 30,000 pages).
_MOST = 100_000_000


def _read(values: Mapping[str, Any]) -> Stats:
    found = Stats()
    for name, counts in values.items():
        stage = next((stage for stage in Stage if stage.value == name), None)
        if stage is None or not isinstance(counts, dict):
            raise Invalid("tally: it is not of the form {stage: {in, out, lost}}.")
        found.entered[stage] = _count(counts.get("in"))
        found.left[stage] = _count(counts.get("out"))
        lost = counts.get("lost", {})
        reasons = DROP_REASONS[stage]
        if not isinstance(lost, dict) or not lost.keys() <= reasons.keys():
            raise Invalid(f"tally: {stage.value} names a reason that this tracker does not know.")
        found.dropped.update({reasons[reason]: _count(n) for reason, n in lost.items()})
    return found


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise Invalid("tally: every count is a whole number, and none that a WAT file cannot hold.")
    return value
