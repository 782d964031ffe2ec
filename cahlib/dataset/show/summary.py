"""What a whole dataset holds, added up from its seals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from cahlib.config import settings
from cahlib.dataset.manifest import GalleryItem, ShardManifest, no_dataset_error, read_manifests
from cahlib.dataset.tar_index import tar_size
from cahlib.records import Reason, Stage, Tally
from cahlib.words import plural

#: Pairs of each kind that are kept for show.
_SHOWN = 24

#: WAT files that are named.
_CUT = 10

#: Hosts that are named.
_DOMAINS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTimes:
    """When a shard was worked on, and what came of it."""

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
    tally: Tally
    kept: Mapping[int, int]  #: kept pairs by hundredths of similarity
    dropped: Mapping[int, int]
    similarity: float  #: mean of the kept pairs; 0 if there is none
    domains: Mapping[str, int]  #: the hosts that gave the most pairs, and how many
    gallery: tuple[GalleryItem, ...]
    optouts: int
    overruled: int  #: refusals that were recorded and not obeyed
    work: tuple[ShardTimes, ...]
    models: tuple[tuple[str, float], ...]  #: with their thresholds; one, unless folders were mixed
    forms: tuple[str, ...]
    versions: Mapping[str, str]
    #: WAT files that are cut off, by the byte at which they are
    cut: Mapping[str, int] = field(default_factory=dict)
    tars: Mapping[str, int] = field(default_factory=dict)  #: their samples, by name
    scores: tuple[str, ...] = ()  #: the columns of scores
    #: kept pairs by label and by what the second classifier says
    opinions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """What whoever uses the dataset should know, a sentence each."""
        named = [
            f"{PurePath(url).name} is cut off at byte {size:,}; what followed is missing."
            for url, size in list(self.cut.items())[:_CUT]
        ]
        more = len(self.cut) - len(named)
        return named + [f"So are {plural(more, 'other WAT file')}."] * bool(more)

    def funnel(self) -> tuple[tuple[str, int], ...]:
        """How many came to each step of the work."""
        entered, left = self.tally.entered, self.tally.left
        return (
            ("records", entered[Stage.READ]),
            ("links", entered[Stage.CHOOSE]),
            ("candidates", left[Stage.CHOOSE]),
            ("fetched", left[Stage.FETCH]),
            ("kept", left[Stage.JUDGE]),
        )

    def lost(self, stage: Stage) -> tuple[tuple[Reason, int], ...]:
        """The reasons of a stage with their counts, the most frequent first."""
        lost = self.tally.lost
        of_stage = [(each, lost[each]) for each in Reason if each.stage is stage and lost[each]]
        return tuple(sorted(of_stage, key=lambda pair: -pair[1]))


def summarize(place: str | Path) -> Summary:
    """The summary of the dataset in a folder or at a URL; that of a folder without one is empty.

    A shard whose manifest is damaged is left out.
    """
    return summarize_manifests(read_manifests(place, damaged="skip"))


def summarize_manifests(seals: Iterable[ShardManifest]) -> Summary:
    """Add up seals, of which one at a time is in memory."""
    tally = Tally()
    kept, dropped, domains = Counter[int](), Counter[int](), Counter[str]()
    opinions: dict[str, Counter[str]] = {}
    shown: list[GalleryItem] = []
    work: list[ShardTimes] = []
    models, forms, versions = dict[tuple[str, float], None](), dict[str, None](), dict[str, str]()
    cut, sizes, scores = dict[str, int](), dict[str, int](), dict[str, None]()
    size = optouts = overruled = 0
    similarity = 0.0
    for each in seals:
        tally += each.tally
        kept.update(each.kept)
        dropped.update(each.dropped)
        domains.update(each.domains)
        for label, counts in each.opinions.items():
            opinions.setdefault(label, Counter()).update(counts)
        shown = _drawn([*shown, *each.gallery])
        work.append(_work(each))
        models[each.model, each.threshold] = None
        forms |= dict.fromkeys(each.forms)
        versions |= each.versions
        size += sum(stored.size for stored in each.files.values())
        optouts += each.optouts
        overruled += each.overruled
        cut |= {each.shard.url: each.cut} if each.cut else {}
        similarity += each.similarity * each.rows
        sizes |= tar_size(each)
        scores |= dict.fromkeys(each.scores)
    return Summary(
        shards=len(work),
        pairs=tally.left[Stage.JUDGE],
        bytes=size,
        tally=tally,
        kept=kept,
        dropped=dropped,
        similarity=similarity / max(tally.left[Stage.JUDGE], 1),
        opinions=opinions,
        domains=dict(domains.most_common(_DOMAINS)),
        gallery=tuple(shown),
        optouts=optouts,
        overruled=overruled,
        work=tuple(work),
        models=tuple(models),
        forms=tuple(forms),
        versions=versions,
        cut=cut,
        tars=sizes,
        scores=tuple(scores),
    )


def summary_lines(place: str | Path) -> Iterator[str]:
    """The summary of a dataset for people, line by line; raises ConfigError if there is none."""
    found = summarize_manifests(read_manifests(place))
    if not found.shards:
        raise no_dataset_error(place)
    size = f"{found.bytes / 1e6:,.1f} MB"
    yield f"{place}: {plural(found.pairs, 'pair')} in {plural(found.shards, 'shard')}, {size}"
    for model, threshold in found.models:
        yield f"  judged by {model}, kept from {threshold:g} on, mean {found.similarity:.3f}"
    yield f"  beside the metadata: {', '.join(found.forms) or 'nothing'}"
    yield from (f"  {each}" for each in found.warnings())
    yield f"  owners who refused, with evidence: {found.optouts:,}"
    for stage in Stage:
        entered, left = found.tally.entered[stage], found.tally.left[stage]
        yield f"{stage.value}: {entered:,} {stage.takes} in, {left:,} {stage.gives} out"
        for reason, number in found.lost(stage):
            yield f"  {number:>12,}  {percentage(number, entered):>8}  {reason.phrase}"
    yield "where the pairs come from:"
    for domain, number in list(found.domains.items())[:10]:
        yield f"  {number:>12,}  {percentage(number, found.pairs):>8}  {domain}"


def published_settings(job_values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that decide what is in a dataset, as texts that may be published.

    Of files on this machine only the names: their folders tell of nobody's business.
    """
    return [
        (setting.name.replace("_", " "), text)
        for setting in settings()
        if not setting.option.free and (text := _text(job_values.get(setting.name)))
    ]


def percentage(part: int, whole: int) -> str:
    """A share in percent, with as many digits as it takes to not be zero."""
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


def _drawn(shown: Iterable[GalleryItem]) -> list[GalleryItem]:
    """Of each kind the pairs with the least keys: a fair draw, the same every time."""
    found = sorted(shown, key=lambda each: each.uid)
    kept, dropped = ([each for each in found if each.kept is kind] for kind in (True, False))
    return kept[:_SHOWN] + dropped[:_SHOWN]


def _work(manifest: ShardManifest) -> ShardTimes:
    return ShardTimes(
        started=manifest.started,
        scraped=manifest.scraped,
        finished=manifest.finished,
        images=manifest.tally.left[Stage.FETCH],
        pairs=manifest.rows,
    )
