"""The records that pass from stage to stage, and the counts of what was dropped between them.

A shard is read into records, their links become candidates, candidates become images, images
become pairs. Every stage obeys one law, which `Stats` holds: what entered is what left plus what
was dropped, by `DropReason`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np


class Stage(Enum):
    """A step of the work: its value, its input, and its output."""

    READ = "read", "records", "pages"
    CHOOSE = "choose", "links", "candidates"
    FETCH = "fetch", "candidates", "images"
    JUDGE = "judge", "images", "pairs"

    takes: str
    gives: str

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is a Python function

    def __new__(cls, value: str, takes: str, gives: str) -> Stage:
        member = object.__new__(cls)
        member._value_ = value
        member.takes, member.gives = takes, gives
        return member


class DropReason(Enum):
    """A reason for a drop: its value, its stage, and a phrase for people."""

    # A reason is a cause, never a message: a report can count causes, not sentences.
    NOT_A_PAGE = "not_a_page", Stage.READ, "holds no HTML page"
    BROKEN_RECORD = "broken_record", Stage.READ, "is not a readable record, or row of a table"
    BROKEN_MEMBER = "broken_member", Stage.READ, "lies in a damaged gzip member"

    NO_TEXT = "no_text", Stage.CHOOSE, "has no text"
    SHORT_TEXT = "short_text", Stage.CHOOSE, "has too short a text"
    LONG_TEXT = "long_text", Stage.CHOOSE, "has too long a text"
    FILENAME_TEXT = "filename_text", Stage.CHOOSE, "has a file name as its text"
    JUNK_TEXT = "junk_text", Stage.CHOOSE, "has a text without words"
    PERSONAL_TEXT = "personal_text", Stage.CHOOSE, "has personal data in its text"
    NO_WANTED_WORD = "no_wanted_word", Stage.CHOOSE, "has none of the wanted words in its text"
    UNWANTED_WORD = "unwanted_word", Stage.CHOOSE, "has an unwanted word in its text"
    OTHER_PATTERN = "other_pattern", Stage.CHOOSE, "has a text that the pattern does not match"
    LANGUAGE = "language", Stage.CHOOSE, "is in another language"
    NOT_A_PICTURE_URL = "not_a_picture_url", Stage.CHOOSE, "cannot be a photo (svg, gif, data: …)"
    BAD_URL = "bad_url", Stage.CHOOSE, "has a malformed URL"
    LONG_URL = "long_url", Stage.CHOOSE, "has too long a URL"
    PRIVATE_HOST = "private_host", Stage.CHOOSE, "names a host that is not public"
    BLOCKED_DOMAIN = "blocked_domain", Stage.CHOOSE, "is on a blocked domain"
    BLOCKED_URL = "blocked_url", Stage.CHOOSE, "is on a list of blocked URLs"
    BLOCKED_PAIR = "blocked_pair", Stage.CHOOSE, "is on a list of blocked pairs"
    PAGE_OPTED_OUT = "page_opted_out", Stage.CHOOSE, "is on a page whose owner opted out"
    DUPLICATE = "duplicate", Stage.CHOOSE, "was seen before in this shard"

    UNFETCHABLE = "unfetchable", Stage.FETCH, "URL cannot be requested"
    DNS = "dns", Stage.FETCH, "host name did not resolve"
    PRIVATE_ADDRESS = (
        "private_address",
        Stage.FETCH,
        "host has an address that is not public",
    )
    REFUSED = "refused", Stage.FETCH, "connection refused or unreachable"
    TIMEOUT = "timeout", Stage.FETCH, "took too long"
    TLS = "tls", Stage.FETCH, "TLS failed"
    DISCONNECTED = "disconnected", Stage.FETCH, "connection was lost"
    BAD_REDIRECT = "bad_redirect", Stage.FETCH, "redirected too often or to a forbidden place"
    BAD_HTTP = "bad_http", Stage.FETCH, "response is not HTTP"
    HTTP_4XX = "http_4xx", Stage.FETCH, "not found or forbidden (4xx)"
    TOO_OFTEN = "too_often", Stage.FETCH, "too many requests (429), also after a pause"
    HTTP_5XX = "http_5xx", Stage.FETCH, "server failed (5xx)"
    HTTP_OTHER = "http_other", Stage.FETCH, "another status than 200"
    OPTED_OUT = "opted_out", Stage.FETCH, "owner opted out, machine-readably"
    NO_ROBOTS = "no_robots", Stage.FETCH, "robots.txt failed, so nothing may be fetched"
    TOO_MANY_LINKS = "too_many_links", Stage.FETCH, "too many links to one domain in this shard"
    LEFT_ALONE = "left_alone", Stage.FETCH, "domain failed or refused too often, or asked to wait"
    KNOWN_HARM = "known_harm", Stage.FETCH, "is on a list of known harm"
    TOO_MANY_BYTES = "too_many_bytes", Stage.FETCH, "file is too large"
    TOO_FEW_BYTES = "too_few_bytes", Stage.FETCH, "file is too small"
    NOT_AN_IMAGE = "not_an_image", Stage.FETCH, "not a JPEG, PNG, WebP or AVIF"
    BROKEN_IMAGE = "broken_image", Stage.FETCH, "image cannot be decoded completely"
    SMALL_SIDE = "small_side", Stage.FETCH, "a side is too short"
    TOO_MANY_PIXELS = "too_many_pixels", Stage.FETCH, "too many pixels"
    ASPECT = "aspect", Stage.FETCH, "too long and thin"

    UNREADABLE = "unreadable", Stage.JUDGE, "could not be prepared for the model"
    HARM_LOOKS = "harm_looks", Stage.JUDGE, "looks like an image on a list of known harm"
    DISSIMILAR = "dissimilar", Stage.JUDGE, "text does not match the image"
    MINOR = "minor", Stage.JUDGE, "possibly a minor in unsafe content"
    ANIMAL = "animal", Stage.JUDGE, "possibly an animal in unsafe content"
    HEAD_SCORE = "head_score", Stage.JUDGE, "has a score beyond a head's threshold"
    SAME_IMAGE = "same_image", Stage.JUDGE, "has the same image as another pair"
    NEAR_DUPLICATE = "near_duplicate", Stage.JUDGE, "looks like another image of the dataset"
    SAME_MEANING = "same_meaning", Stage.JUDGE, "means the same as another image of the dataset"
    EVALUATION = "evaluation", Stage.JUDGE, "is like an image of an evaluation set"
    PURGED = "purged", Stage.JUDGE, "was purged from the finished dataset"
    DESELECTED = "deselected", Stage.JUDGE, "was not selected from the finished dataset"
    PAIR_SEEN = "pair_seen", Stage.JUDGE, "already in the dataset from another shard"

    stage: Stage
    phrase: str

    __hash__ = object.__hash__  # as for a stage

    def __new__(cls, value: str, stage: Stage, phrase: str) -> DropReason:
        member = object.__new__(cls)
        member._value_ = value
        member.stage, member.phrase = stage, phrase
        return member


#: The reasons of each stage by name: a scan of all of them would cost a completion 0.1 ms.
DROP_REASONS = {stage: {r.value: r for r in DropReason if r.stage is stage} for stage in Stage}


@dataclass(slots=True)
class Stats:
    """Counts per stage: what entered, what left, and why the rest was dropped."""

    entered: Counter[Stage] = field(default_factory=Counter)
    left: Counter[Stage] = field(default_factory=Counter)
    dropped: Counter[DropReason] = field(default_factory=Counter)
    #: of images that no `Judged` tells of, by the positions of their candidates
    unscored: dict[int, DropReason] = field(default_factory=dict, compare=False)

    def __add__(self, other: Stats) -> Stats:
        return Stats(
            self.entered + other.entered, self.left + other.left, self.dropped + other.dropped
        )

    def drop_unscored(self, image: Image, reason: DropReason) -> None:
        """Count an image that is dropped before it is scored."""
        self.dropped[reason] += 1
        self.unscored[image.candidate.position] = reason

    def done(self, stage: Stage) -> int:
        """Return how many items left a stage or were dropped there."""
        # iterates over all reasons: another thread may add one to `dropped` meanwhile
        return self.left[stage] + sum(self.dropped.get(r, 0) for r in DROP_REASONS[stage].values())

    def unaccounted(self, stage: Stage) -> int:
        """Return how many items entered a stage and are still in it; 0 at the end."""
        return self.entered[stage] - self.done(stage)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: ``{stage: {"in": n, "out": n, "lost": {reason: n}}}``."""
        return {
            stage.value: {
                "in": self.entered[stage],
                "out": self.left[stage],
                "lost": {
                    name: n for name, r in DROP_REASONS[stage].items() if (n := self.dropped.get(r))
                },
            }
            for stage in Stage
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Stats:
        """Return the inverse of `as_dict`, ignoring other keys."""
        stats = cls()
        for stage in Stage:
            if not (counts := values.get(stage.value)):
                continue
            stats.entered[stage] = counts["in"]
            stats.left[stage] = counts["out"]
            stats.dropped.update(
                {DropReason[reason.upper()]: n for reason, n in counts["lost"].items()}
            )
        return stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One half of a WAT file by bytes, the unit of work at Crawling@Home; or rows of a table."""

    id: str  #: unique in a run, safe as a file's name, the same on every machine
    url: str  #: the WAT file: an absolute path or an http(s) URL; or as in `cahlib.core.table_rows`
    half: int  #: 0 or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A link to an image with a text that may describe it."""

    uid: str  #: hex md5 of url + text in UTF-8: the key of the sample everywhere
    position: int  #: among the candidates of its shard, from 0
    url: str  #: absolute, http or https
    text: str  #: repaired (ftfy), with normalised white space
    raw_text: str | None  #: as on the page, if that differs
    page: str  #: URL of the page that shows the image, or of a table with the row's number
    licence: str  #: the page's creativecommons.org link, else "?"
    language: str  #: ISO 639 code by CLD2, "un" if unknown
    reliable: bool  #: whether CLD2 calls the language reliable
    source: str  #: "alt", "og" for og:image with og:description, or "table"
    language_evidence: str = "caption"  #: what the language was detected in: "caption" or "page"
    #: extra columns of a table's row, by name
    extra: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A candidate whose image was fetched and completely decoded."""

    candidate: Candidate
    data: bytes  #: as stored in the dataset
    format: str  #: of `data`: "jpg", "png", "webp" or "avif", which is also the file's extension
    width: int  #: of `data`, pixels
    height: int
    original_width: int  #: as served, pixels
    original_height: int
    md5: str  #: hex, of the bytes as served
    sha1: str  #: hex, of the bytes as served
    sha256: str  #: hex, of the bytes as served
    #: headers of its owner on its use, one per line, "" if none: X-Robots-Tag as it was served,
    #: others after their names
    robots: str
    #: its perceptual hash and mean colours (`cahlib.image.perceptual_hash`), hex; "" if fetched by
    #: an untrusted worker or an older cahlib
    phash: str = ""
    chroma: str = ""
    thumb: bytes = b""  #: a small picture for the model (`cahlib.image.thumbs`), if there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class OptOut:
    """The evidence that an owner opted out of the use of an image."""

    url: str  #: the image's
    where: str  #: the URL of the signal (after redirects)
    signal: str  #: as in `cahlib.fetch.opt_outs.HONOURED`
    value: str  #: as served
    time: float  #: when, seconds since 1970 (UTC)
    obeyed: bool = True  #: False: the run's consent profile does not honour the signal


class Outcome(NamedTuple):
    """The result of fetching a candidate."""

    position: int  #: the candidate's
    reason: DropReason | None  #: why it was dropped; None if its image was passed on
    candidate: Candidate | None  #: None for an image that must not be found again by its link
    status: int | None = None  #: of the last HTTP response
    final_url: str | None = None  #: after redirects, if that is another URL
    ms: int | None = None  #: milliseconds that it took, with robots.txt, pauses and repetitions
    bytes: int | None = None  #: of the body, as announced or read to its end
    attempt: int = 0  #: how often it was tried


class OutcomeLog(Protocol):
    """Collects the outcomes of a shard's candidates, which may come in any order."""

    def add(self, outcome: Outcome) -> None:
        """Add an outcome."""

    def packed(self) -> bytes:
        """Return all outcomes as a parcel carries them."""


#: Reasons of which no link, text or score is stored: a dataset must not lead to such images.
ERASED_REASONS = frozenset(
    {DropReason.KNOWN_HARM, DropReason.HARM_LOOKS, DropReason.MINOR, DropReason.PURGED}
)


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Findings on owners, domains and the WAT file while a shard is scraped."""

    optouts: list[OptOut] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)  #: domains that never answered
    cut: int = 0  #: the byte at which the WAT file is truncated, 0 if it is complete
    outcomes: OutcomeLog | None = None  #: None if they are not to be recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """The images of one shard in one file, with the statistics of their scraping."""

    shard: Shard
    path: Path  #: an uncompressed tar, with its manifest beside it
    sha256: str  #: hex, of the tar
    size: int  #: of the tar, bytes
    images: int
    stats: Stats  #: of the stages READ, CHOOSE and FETCH
    optouts: tuple[OptOut, ...]
    started: float  #: seconds since 1970
    finished: float
    versions: Mapping[str, str]  #: of cahlib, Python and the libraries that processed the images
    silent: tuple[str, ...] = ()  #: domains that never answered
    cut: int = 0  #: as in `Evidence`
    index: int = 0  #: offset in the tar of the metadata of all images; 0: each has its own file
    outcomes: int = 0  #: offset of the candidates' outcomes; 0 if it has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A scored image: a pair unless there is a reason to drop it."""

    image: Image
    similarity: float | None  #: cosine of image and text, -1 … 1; None: no model judged
    nsfw: str  #: "UNLIKELY", "UNSURE" or "NSFW"; "": no model judged
    scores: Mapping[str, float]  #: every score, named "<model> <what>"
    image_embedding: np.ndarray[Any, Any]  #: float16, shape (width of the model,), length 1
    text_embedding: np.ndarray[Any, Any]
    reason: DropReason | None  #: why it is dropped; None if it is kept
