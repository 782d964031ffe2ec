"""The speed of scraping and judging on this machine, measured by its runs and stored.

Until a run has measured it, the figures are Crawling@Home's of 2021 for the crawl, and those of
this project's benchmarks for the model.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from cahlib.core.atomic import write_file
from cahlib.core.config import Job
from cahlib.core.errors import CahError
from cahlib.core.judge_settings import split_threshold
from cahlib.core.presets import PRESETS
from cahlib.core.records import Stage, Stats

#: Links per second and core: one-core servers of Crawling@Home did 11 to 17. The limit is not the
#: processor (`bench_images` had two cores do 331) but how slowly the web answers.
_CORE = 14.0

#: Of one shard, half a WAT file: new English links, and pairs kept by ViT-B/32 at 0.30
#: (Crawling@Home's figures of 17,000 links and 1,000 to 1,500 pairs a WAT file).
_LINKS, _PAIRS = 8_500, (500, 750)

#: Images to be judged per link, as in `bench_whole`; and images per second that ViT-B/32 judges on
#: a GPU (assumed, as in `bench_whole`), and on each core of a CPU (`bench_judge`: 14 on two).
_IMAGES, _GPU, _CPU = 0.7, 500.0, 7.0

#: The end of the key under which the yield of tables is stored.
_OF_TABLES = " of tables"

#: Shards that are averaged; older ones decay.
_LAST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Figures for an estimate."""

    core: float  #: links per second of a scraper
    links: float  #: per shard
    pairs: tuple[float, float]  #: kept per shard, at least and at most
    images: float  #: to be judged per link
    model: float  #: images per second that the model judges
    source: str  #: of the figures, in words


def rates_for(job: Job) -> Rates:
    """Return the figures for a job: those measured by similar runs, where there are any."""
    every, (core, crawl, model) = _read(_path()), _keys(job)
    scraping, judging, work = (every.get(key, {}) for key in (core, crawl, model))
    known = every.get(crawl.removesuffix(_OF_TABLES), {})  # for tables, what a crawl yielded
    links, pairs, images = float(_LINKS), (float(_PAIRS[0]), float(_PAIRS[1])), _IMAGES
    if known.get("shards", 0):
        links = known["links"] / known["shards"]
        pairs = (known["pairs"] / known["shards"],) * 2
        images = known["images"] / max(known["links"], 1)
    if job.crawl.links:
        kept = (pairs[0] / links, images)  # as few as of a crawl's captions, or all images
        links = float(job.crawl.shard_links)
        if judging.get("rows", 0):
            links *= judging["links"] / judging["rows"]
            images = judging["images"] / max(judging["links"], 1)
            kept = (judging["pairs"] / max(judging["links"], 1),) * 2
        pairs = (links * (images if job.judge.no_judge else kept[0]), links * kept[1])
    speed = _GPU if _has_gpu(job) else _CPU * (os.cpu_count() or 1)
    if job.judge.no_judge:
        work, speed = {}, math.inf
    elif not work:  # one device does it all: each further model adds the time for what is kept
        kept_share = min(pairs[1] / (links * images), 1.0) if links and images else 1.0
        first, *others = (_speed(every, each, speed) for each in _model_keys(job))
        speed = 1 / (1 / first + kept_share * sum(1 / each for each in others))
    seen = {name for name, each in (("speed", scraping), ("yield", judging)) if each}
    return Rates(
        core=scraping["links"] / scraping["seconds"] if scraping else _CORE,
        links=links,
        pairs=pairs,
        images=images,
        model=work["images"] / work["seconds"] if work else speed,
        source=_SOURCES[frozenset(seen)],
    )


#: The source of the figures, by what was measured.
_SOURCES = {
    frozenset(): "from Crawling@Home's figures of 2021, as this machine has no measurements yet",
    frozenset({"speed"}): "at the speed of this machine's last runs, with the yield of 2021",
    frozenset({"yield"}): "with the yield of this machine's last runs, at the speed of 2021",
    frozenset({"speed", "yield"}): "from this machine's last runs",
}


class RateRecorder:
    """Measures the shards of one launch, and stores the rates."""

    def __init__(self, job: Job) -> None:
        self._keys, self._worked = _keys(job), 0.0
        # a replay, as in the demo, tells nothing about the web, nor others' scraping about us
        self._path = None if job.download.replay or job.place.tracker else _path()

    def add(self, stats: Stats, *, scraped: float, worked: float) -> None:
        """Add a shard scraped in ``scraped`` seconds; ``worked`` is the model's total so far."""
        links, images = stats.done(Stage.FETCH), stats.entered[Stage.JUDGE]
        spent, self._worked = worked - self._worked, worked
        if not self._path or not links:
            return
        core, crawl, model = self._keys
        every = _read(self._path)
        _sum(every, core, links=links, seconds=scraped)
        rows = {"rows": stats.entered[Stage.READ]} if crawl.endswith(_OF_TABLES) else {}
        _sum(every, crawl, links=links, images=images, pairs=stats.left[Stage.JUDGE], **rows)
        _sum(every, model, images=images, seconds=spent)
        with suppress(CahError):  # a full disk must not end the run
            write_file(self._path, json.dumps(every, indent=1), sync=False)


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU, without loading any library."""
    return which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _has_gpu(job: Job) -> bool:
    return job.judge.device == "cuda" or (job.judge.device == "auto" and has_gpu())


def _keys(job: Job) -> tuple[str, str, str]:
    """Return the keys under which a job's scraping, yield and model are stored."""
    model, pretrained, threshold = job.judge.chosen()
    place = "elsewhere" if job.place.has_servers or job.place.engine else "here"
    languages = ",".join(job.crawl.languages)
    return (
        f"scraped {place}",
        f"{languages} by {model} {pretrained} at {threshold:g}"
        + (_OF_TABLES if job.crawl.links else ""),
        " and ".join(_model_keys(job)),
    )


def _model_keys(job: Job) -> list[str]:
    """Return the key of each model of a job alone: the run's own, then the further ones."""
    where, judge = "GPU" if _has_gpu(job) else "CPU", job.judge
    further = (*(split_threshold(each)[0] for each in judge.cascade), *judge.also)
    named = [judge.chosen()[:2]]
    for name in further:
        preset, (model, _, weights) = PRESETS.get(name), name.rpartition("/")
        named.append((preset.model, preset.pretrained) if preset else (model, weights))
    return [f"{model} {weights} on {where}" for model, weights in named]


def _speed(every: Mapping[str, Mapping[str, float]], key: str, default: float) -> float:
    """Return the images per second of a model, if a run of it alone has measured that."""
    measured = every.get(key, {})
    return measured["images"] / measured["seconds"] if measured else default


def _sum(every: dict[str, dict[str, float]], key: str, **counts: float) -> None:
    """Add a shard's counts to the stored ones, unless one of them is unusable."""
    if not counts.get("seconds", 1) > 0 or not (counts.get("links", 0) or counts.get("images", 0)):
        return
    before = Counter(every.get(key, {}))
    if before["shards"] >= _LAST:
        before = Counter({name: value * (1 - 1 / _LAST) for name, value in before.items()})
    every[key] = {name: before[name] + value for name, value in {"shards": 1, **counts}.items()}


def _path() -> Path | None:
    with suppress(RuntimeError):  # this user has no home
        return Path.home() / ".cache" / "cahlib" / "rates.json"
    return None


def _read(path: Path | None) -> dict[str, dict[str, float]]:
    """Return what is stored; an empty dict if that cannot be read."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        told = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return {
            str(key): {str(name): float(value) for name, value in each.items()}
            for key, each in told.items()
            if _is_whole(each)
        }
    return {}


def _is_whole(each: Mapping[str, float]) -> bool:
    divisors = (each.get(name, 1) for name in ("seconds", "links", "images"))
    return each.get("shards", 0) > 0 and min(divisors) > 0
