"""Explain what became of a link, a pair or a domain: from outcomes, evidence and metadata.

Shards are read one after the other, and of each only what matches is kept, so memory does not grow
with the dataset. Where a shard has no outcomes, its pairs and its evidence are known still.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.records import ERASED_REASONS, DropReason, Stage
from cahlib.core.retry_shards import parse_attempt
from cahlib.dataset.layout import part_path
from cahlib.dataset.manifest import (
    ShardManifest,
    has_outcomes,
    no_dataset_error,
    read_manifests,
    tar_path,
)
from cahlib.dataset.metadata import read_metadata
from cahlib.dataset.outcomes import KEPT, read_outcomes
from cahlib.dataset.storage.files import files_at

#: Matches with all that is known of them, and those of each reason if there are more.
_SHOWN, _OF_EACH = 10, 3

_UID = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_HOST = re.compile(r"(?!-)[\w-]{1,63}(?:\.[\w-]{1,63})*\.?")

#: The columns in which each kind of query is looked for.
_LINKS = ["url", "final_url", "page"]
_SEARCHED = {"uid": ["uid"], "url": _LINKS, "domain": _LINKS}
_IN_METADATA = {"uid": ["uid"], "url": ["url", "page"], "domain": ["url", "page"]}

#: The names of the metadata's columns among those of the outcomes.
_OUTCOME_NAMES = {"URL": "url", "TEXT": "text", "NSFW": "nsfw"}

#: The columns of the metadata that are read: a table's own may have the others' names.
_READ = ("uid", *_OUTCOME_NAMES, "page", "similarity")

#: What is told of a match.
_TOLD = (
    "uid", "url", "text", "page", "status", "final_url", "ms", "bytes", "attempt", "similarity",
    "nsfw",
)  # fmt: skip


class LinkQuery(NamedTuple):
    """The link, pair or domain that is looked for."""

    kind: str  #: "uid", "url" or "domain"
    words: tuple[str, ...]  #: the uid, the URL's spellings, or the domain in DNS form


class Match(NamedTuple):
    """A candidate that matches, and what became of it."""

    shard: str
    reason: str  #: `KEPT`, or the value of a `DropReason`
    phrase: str  #: the reason for people; "" if it was kept
    known: Mapping[str, Any]  #: its columns of outcomes, without those that are null
    threshold: float | None  #: the lowest similarity of a kept pair, if it was judged
    evidence: Sequence[Mapping[str, Any]]  #: opt-outs, as in optouts/
    file: str  #: the tar that has it, "" if none has


@dataclass(slots=True, kw_only=True)
class Explanation:
    """All that a dataset knows of a link."""

    query: LinkQuery
    reasons: Counter[str] = field(default_factory=Counter)
    retries: int = 0  #: of these, attempts by `cah retry`
    matches: list[Match] = field(default_factory=list)
    shards: int = 0
    shards_without_outcomes: int = 0
    silent: int = 0  #: shards in which the domain never answered
    erased: int = 0  #: candidates whose links are not stored
    dropped_before: Counter[str] = field(default_factory=Counter)  #: links that no row has

    def add(self, match: Match) -> None:
        """Count a match, and keep some of each reason."""
        self.reasons[match.reason] += 1
        if sum(each.reason == match.reason for each in self.matches) < _SHOWN:
            self.matches.append(match)

    def shown(self) -> list[Match]:
        """Return the matches to show: all, or some of each reason."""
        if self.reasons.total() <= _SHOWN:
            return self.matches
        seen = Counter[str]()
        few = []
        for each in self.matches:
            seen[each.reason] += 1
            if seen[each.reason] <= _OF_EACH:
                few.append(each)
        return sorted(few, key=lambda each: (-self.reasons[each.reason], each.reason))


def parse_query(text: str) -> LinkQuery:
    """Return what a text names: a uid, an http(s) URL or a domain; raise ConfigError."""
    given = text.strip()
    if _UID.fullmatch(given):
        return LinkQuery("uid", (given.lower(),))
    if "://" in given:
        try:
            is_url = (
                urlsplit(given).scheme.lower() in ("http", "https") and urlsplit(given).hostname
            )
        except ValueError:
            is_url = None
        if is_url:
            return LinkQuery("url", (given,))
    try:
        host = given.rstrip(".").lower()
        host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        host = ""
    if "." not in host or not _HOST.fullmatch(host):
        raise ConfigError(
            f"{text!r} is not an http(s) URL, a domain (example.org) or a uid (32 hex digits)."
        )
    return LinkQuery("domain", (host,))


def explain(place: str | Path, query: LinkQuery) -> Explanation:
    """Return what a dataset knows of a link.

    Raise ConfigError if there is no dataset, RunError if a file is damaged or cannot be read.
    """
    found = Explanation(query=query)
    for manifest in read_manifests(place):
        found.shards += 1
        found.shards_without_outcomes += not has_outcomes(manifest) and _has_candidates(manifest)
        stats = manifest.stats
        if not has_outcomes(manifest):
            found.erased += sum(stats.dropped[reason] for reason in ERASED_REASONS)
        for reason in DropReason:
            if reason.stage is Stage.CHOOSE and stats.dropped[reason]:
                found.dropped_before[reason.value] += stats.dropped[reason]
        if query.kind == "domain":
            found.silent += any(_is_below(each, query.words[0]) for each in manifest.silent)
        try:
            _add_shard(found, place, manifest, query)
        except (ValueError, KeyError, OSError) as error:
            raise RunError(
                f"shard {manifest.shard.id} cannot be read ({error}); see `cah verify`."
            ) from error
    if not found.shards:
        raise no_dataset_error(place)
    return found


def _has_candidates(manifest: ShardManifest) -> bool:
    return manifest.stats.entered[Stage.FETCH] > 0


def _add_shard(
    found: Explanation, place: str | Path, manifest: ShardManifest, query: LinkQuery
) -> None:
    """Add what matches in a shard; all of it is counted, and the first of each reason read."""
    rows, refused = list[Mapping[str, Any]](), set[str | None]()
    is_retry = parse_attempt(manifest.shard.id)[1] > 0
    for batch in _matching(found, place, manifest, query):
        reasons = batch["reason"].to_pylist()
        found.retries += len(reasons) * is_retry
        few = [at for reason in {*reasons} for at in _first(reasons, reason)]
        rows += batch.take(pa.array(few, pa.int64())).to_pylist()
        for at in few:
            reasons[at] = None
        found.reasons.update(reason for reason in reasons if reason)
        opted_out = pc.equal(batch["reason"], DropReason.OPTED_OUT.value)
        refused |= {*batch.filter(opted_out)["url"].to_pylist()}
    evidence = [*_evidence(place, manifest, query, {row["url"] for row in rows})]
    for row in rows:
        told = [each for each in evidence if each["url"] == row["url"]]
        found.add(_match(manifest, row, told))
    # links that were refused before they became candidates, or that an older shard dropped
    others = dict[str, list[Mapping[str, Any]]]()
    for each in evidence:
        if each.get("obeyed", True) and each["url"] not in refused:
            others.setdefault(each["url"], []).append(each)
    reason = DropReason.PAGE_OPTED_OUT if has_outcomes(manifest) else DropReason.OPTED_OUT
    for url, told in others.items():
        found.add(_match(manifest, {"url": url, "reason": reason.value}, told))


def _first(reasons: list[str | None], reason: str | None) -> Iterator[int]:
    """Yield the places of the first rows with a reason."""
    return islice((at for at, each in enumerate(reasons) if each == reason), _SHOWN)


def _match(
    manifest: ShardManifest, row: Mapping[str, Any], evidence: Sequence[Mapping[str, Any]]
) -> Match:
    kept = row["reason"] == KEPT
    judged = row.get("similarity") is not None
    tar = tar_path(manifest) if kept else None
    return Match(
        shard=manifest.shard.id,
        reason=row["reason"],
        phrase="" if kept else _phrase(row["reason"]),
        known={name: row[name] for name in _TOLD if row.get(name) is not None},
        threshold=manifest.threshold if judged else None,
        evidence=evidence,
        file=tar or "",
    )


def _phrase(reason: str) -> str:
    try:
        return DropReason[reason.upper()].phrase
    except KeyError:  # of a later version
        return "was dropped"


def _matching(
    found: Explanation, place: str | Path, manifest: ShardManifest, query: LinkQuery
) -> Iterator[pa.RecordBatch]:
    """Yield the matching rows of the outcomes, or of the metadata where there are none."""
    if has_outcomes(manifest):
        for batch in read_outcomes(place, manifest):
            # a purged link may have any reason
            found.erased += batch["url"].null_count
            yield batch.filter(_hits(batch, _SEARCHED[query.kind], query))
        return
    path = part_path("metadata", manifest.shard.id)
    if path not in manifest.files:
        return
    with files_at(manifest.place or place).open(path) as file:
        table = read_metadata(file, _READ)
    table = table.rename_columns([_OUTCOME_NAMES.get(each, each) for each in table.column_names])
    for batch in table.to_batches():
        hits = batch.filter(_hits(batch, _IN_METADATA[query.kind], query))
        yield hits.append_column("reason", pa.array([KEPT] * len(hits), pa.string()))


def _hits(batch: pa.RecordBatch, columns: Sequence[str], query: LinkQuery) -> pa.Array:
    """Return which rows of a batch match in any of these columns."""
    found = pa.scalar(False)
    for name in columns:
        if query.kind == "domain":
            pattern = _below_pattern(query.words[0])
            hit = pc.match_substring_regex(batch[name], pattern, ignore_case=True)
        else:
            hit = pc.is_in(batch[name], pa.array(query.words, pa.string()))
        found = pc.or_(pc.fill_null(hit, False), found)
    return found


def _below_pattern(domain: str) -> str:
    """Return a pattern of the http(s) URLs on a domain or below it."""
    return rf"^https?://([^/?#@]*@)?([^/?#:@]*\.)?{re.escape(domain)}\.?(:\d+)?([/?#]|$)"


def _is_below(host: str, domain: str) -> bool:
    return host == domain or host.endswith(f".{domain}") or domain.endswith(f".{host}")


def _evidence(
    place: str | Path, manifest: ShardManifest, query: LinkQuery, links: set[str]
) -> Iterator[Mapping[str, Any]]:
    """Yield a shard's opt-outs of these links, and of the query."""
    path = part_path("optouts", manifest.shard.id)
    if path not in manifest.files:
        return
    wanted = links | ({*query.words} if query.kind == "url" else set())
    pattern = re.compile(_below_pattern(query.words[0]), re.IGNORECASE)
    with files_at(manifest.place or place).open(path) as file:
        for line in _lines(file):
            url = line["url"]
            page = query.kind == "url" and line.get("where") in query.words
            if url in wanted or page or (query.kind == "domain" and pattern.match(url)):
                yield line


def _lines(file: BinaryIO) -> Iterator[dict[str, Any]]:
    for line in file:
        values = json.loads(line)
        if not (isinstance(values, dict) and isinstance(values.get("url"), str)):
            raise ValueError("optouts/ has a line without a URL")
        yield values
