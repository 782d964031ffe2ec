"""The summary of a whole dataset, added up from its manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from cahlib.core.config import NO_MODEL, settings
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.core.retry_shards import parse_retry
from cahlib.core.table_rows import ExtraColumn, parse_rows_url
from cahlib.core.wording import plural
from cahlib.dataset.manifest import (
    ShardManifest,
    has_outcomes,
    no_dataset_error,
    read_manifests,
)
from cahlib.dataset.show.samples import GallerySamples
from cahlib.dataset.tar_index import tar_size

#: WAT files that warnings list.
_CUT = 10

#: Hosts that are listed.
_DOMAINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTimes:
    """When a shard was worked on, and its yield."""

    started: float  #: seconds since 1970
    scraped: float
    finished: float
    images: int
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A dataset in numbers."""

    shards: int
    pairs: int
    bytes: int  #: of all files of the shards
    stats: Stats
    kept: Mapping[int, int]  #: kept pairs by hundredths of similarity
    dropped: Mapping[int, int]
    similarity: float  #: mean of the kept pairs; 0 if there are none
    domains: Mapping[str, int]  #: the hosts with the most pairs, and their number
    samples: GallerySamples
    optouts: int
    overruled: int  #: opt-outs that were recorded and not obeyed
    outcomes: int  #: shards that have the outcomes of their candidates
    work: tuple[ShardTimes, ...]
    models: tuple[tuple[str, float], ...]  #: with their thresholds; one, unless folders were merged
    forms: tuple[str, ...]
    versions: Mapping[str, str]
    #: truncated WAT files, with the byte at which they end
    cut: Mapping[str, int] = field(default_factory=dict)
    tars: Mapping[str, int] = field(default_factory=dict)  #: samples by name
    scores: tuple[str, ...] = ()  #: the columns of scores
    added: Mapping[str, str] = field(default_factory=dict)  #: columns added later, and who scored
    source: str = "Common Crawl"  #: what was read, for people
    extras: tuple[ExtraColumn, ...] = ()  #: columns that a table's rows carry along
    #: kept pairs by label and by the second classifier's band
    opinions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """Return what users of the dataset should know, a sentence each."""
        named = [
            f"{PurePath(url).name} is cut off at byte {size:,}; the rest is missing."
            for url, size in list(self.cut.items())[:_CUT]
        ]
        more = len(self.cut) - len(named)
        return named + [f"So are {plural(more, 'other WAT file')}."] * bool(more)

    def stage_counts(self) -> tuple[tuple[str, int], ...]:
        """Return the number after each step of the work."""
        entered, left = self.stats.entered, self.stats.left
        return (
            ("records", entered[Stage.READ]),
            ("links", entered[Stage.CHOOSE]),
            ("candidates", left[Stage.CHOOSE]),
            ("fetched", left[Stage.FETCH]),
            ("kept", left[Stage.JUDGE]),
        )

    def drop_counts(self, stage: Stage) -> tuple[tuple[DropReason, int], ...]:
        """Return the reasons of a stage with their counts, the most frequent first."""
        counts = self.stats.dropped
        of_stage = [(r, counts[r]) for r in DropReason if r.stage is stage and counts[r]]
        return tuple(sorted(of_stage, key=lambda pair: -pair[1]))


def summarize(place: str | Path) -> Summary:
    """Return the summary of the dataset in a folder or at a URL, empty if there is none.

    Shards with damaged manifests are left out.
    """
    return summarize_manifests(read_manifests(place, damaged="skip"))


def summarize_manifests(manifests: Iterable[ShardManifest]) -> Summary:
    """Add up manifests, with one at a time in memory."""
    stats = Stats()
    kept, dropped, domains = Counter[int](), Counter[int](), Counter[str]()
    opinions: dict[str, Counter[str]] = {}
    samples = GallerySamples()
    work: list[ShardTimes] = []
    models, forms, versions = dict[tuple[str, float], None](), dict[str, None](), dict[str, str]()
    cut, sizes, scores = dict[str, int](), dict[str, int](), dict[str, None]()
    added = dict[str, str]()
    extras, sources = dict[ExtraColumn, None](), dict[str, None]()
    size = optouts = overruled = outcomes = 0
    similarity = 0.0
    for each in manifests:
        stats += _counts(each)
        kept.update(each.kept)
        dropped.update(each.dropped)
        domains.update(each.domains)
        for label, counts in each.opinions.items():
            opinions.setdefault(label, Counter()).update(counts)
        samples.add(each.gallery)
        work.append(_work(each))
        if each.model != NO_MODEL:
            models[each.model, each.threshold] = None
        forms |= dict.fromkeys(each.forms)
        versions |= each.versions
        size += sum(stored.size for stored in each.files.values())
        optouts += each.optouts
        overruled += each.overruled
        outcomes += has_outcomes(each)
        cut |= {each.shard.url: each.cut} if each.cut else {}
        similarity += each.similarity * each.rows
        sizes |= tar_size(each)
        scores |= dict.fromkeys(each.scores)
        added |= {name: more.model for more in each.added for name in more.columns}
        rows = parse_rows_url(each.shard.url)
        sources["tables of links" if rows else "Common Crawl"] = None
        extras |= dict.fromkeys(rows.extras if rows else ())
    return Summary(
        shards=len(work),
        pairs=stats.left[Stage.JUDGE],
        bytes=size,
        stats=stats,
        kept=kept,
        dropped=dropped,
        similarity=similarity / max(stats.left[Stage.JUDGE], 1),
        opinions=opinions,
        domains=dict(domains.most_common(_DOMAINS)),
        samples=samples,
        optouts=optouts,
        overruled=overruled,
        outcomes=outcomes,
        work=tuple(work),
        models=tuple(models),
        forms=tuple(forms),
        versions=versions,
        cut=cut,
        tars=sizes,
        scores=tuple(scores),
        added=added,
        extras=tuple(extras),
        source=" and ".join(sources) or "Common Crawl",
    )


def summary_lines(place: str | Path) -> Iterator[str]:
    """Yield the summary of a dataset as lines of text; raise ConfigError if there is none."""
    found = summarize_manifests(read_manifests(place))
    if not found.shards:
        raise no_dataset_error(place)
    size = f"{found.bytes / 1e6:,.1f} MB"
    yield f"{place}: {plural(found.pairs, 'pair')} in {plural(found.shards, 'shard')}, {size}"
    for model, threshold in found.models:
        yield f"  scored by {model}, kept from {threshold:g} on, mean {found.similarity:.3f}"
    if not found.models:
        yield "  judged by no model"
    yield from (f"  also scored by {model}: {name}" for name, model in found.added.items())
    yield f"  besides metadata: {', '.join(found.forms) or 'nothing'}"
    yield from (f"  {each}" for each in found.warnings())
    yield f"  opt-outs, with evidence: {found.optouts:,}"
    yield f"  outcomes of every candidate: in {found.outcomes:,} of {plural(found.shards, 'shard')}"
    for stage in Stage:
        entered, left = found.stats.entered[stage], found.stats.left[stage]
        yield f"{stage.value}: {entered:,} {stage.takes} in, {left:,} {stage.gives} out"
        for reason, number in found.drop_counts(stage):
            yield f"  {number:>12,}  {percentage(number, entered):>8}  {reason.phrase}"
    if found.domains:
        yield "hosts with the most pairs:"
    for domain, number in list(found.domains.items())[:10]:
        yield f"  {number:>12,}  {percentage(number, found.pairs):>8}  {domain}"


def summary_json(place: str | Path) -> dict[str, Any]:
    """Return the summary of a dataset in JSON's types; raise ConfigError if there is none."""
    found = summarize_manifests(read_manifests(place))
    if not found.shards:
        raise no_dataset_error(place)
    stages = {
        stage.value: {
            "entered": found.stats.entered[stage],
            "left": found.stats.left[stage],
            "dropped": {reason.value: number for reason, number in found.drop_counts(stage)},
        }
        for stage in Stage
    }
    return {
        "dataset": str(place),
        "pairs": found.pairs,
        "shards": found.shards,
        "bytes": found.bytes,
        "models": [{"model": model, "threshold": least} for model, least in found.models],
        "mean_similarity": found.similarity,
        "forms": list(found.forms),
        "opt_outs": found.optouts,
        "outcomes": found.outcomes,
        "stages": stages,
        "domains": dict(found.domains),
        "warnings": found.warnings(),
    }


def published_settings(job_values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that decide what is in a dataset, as text that may be published.

    Files on this machine are given by name, without their private folders.
    """
    return [
        (setting.name.replace("_", " "), text)
        for setting in settings()
        if not setting.option.free and (text := _text(job_values.get(setting.name)))
    ]


def published_cascade(job_values: Mapping[str, Any]) -> str:
    """Return the further models that dropped pairs, with their thresholds; "" without any."""
    return _text(job_values.get("cascade"))


def percentage(part: int, whole: int) -> str:
    """Return a share in percent, with enough digits not to be zero."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if percent >= 0.1 or not part else f"{percent:.1g} %"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_text(each) for each in value)
    if isinstance(value, int):
        return f"{value:,}"
    text = "" if value is None else str(value)
    return PurePath(text).name if text.startswith(("/", "~", "./", "../")) else text


def _counts(manifest: ShardManifest) -> Stats:
    """Return a shard's stats; the links of a retry are those of an earlier attempt."""
    stats = manifest.stats
    if parse_retry(manifest.shard):
        stats.entered[Stage.CHOOSE] = stats.left[Stage.CHOOSE] = 0
    return stats


def _work(manifest: ShardManifest) -> ShardTimes:
    return ShardTimes(
        started=manifest.started,
        scraped=manifest.scraped,
        finished=manifest.finished,
        images=manifest.stats.left[Stage.FETCH],
        pairs=manifest.rows,
    )
