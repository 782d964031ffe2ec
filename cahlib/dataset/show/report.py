"""Writes report.html: one page on a dataset that needs nothing but itself.

It is made anew from the seals, so it covers all launches of a run. The page asks for nothing from
anywhere, and its policy forbids it to: the texts in it come from the web and are hostile until they
are escaped. It does not read the dataset's files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from html import escape
from itertools import pairwise
from pathlib import Path, PurePath
from string import Template
from typing import Any

from cahlib.dataset.manifest import GalleryItem
from cahlib.dataset.show import charts
from cahlib.dataset.show.summary import Summary, percentage, published_settings, summarize
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.write.columns import host_of
from cahlib.model.open_nsfw import NSFW_BANDS
from cahlib.records import Stage
from cahlib.words import plural

#: Characters of a caption that are shown.
_CAPTION = 300

_STAGES = {
    Stage.READ: "Read",
    Stage.CHOOSE: "Choose",
    Stage.FETCH: "Fetch",
    Stage.JUDGE: "Judge",
}


def write_report(place: str | Path, job_values: Mapping[str, Any]) -> None:
    """Make the report of the dataset at a place; ``job_values`` are those of `Job.values`."""
    page = render_report(summarize(place), PurePath(place).name, job_values)
    files_at(place).write("report.html", page.encode("utf-8", "replace"))


def render_report(found: Summary, name: str, job_values: Mapping[str, Any]) -> str:
    """The page on a summary."""
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    gallery = sorted(found.gallery, key=lambda each: -each.similarity)
    return template.substitute(
        title=escape(name),
        lead=_lead(found),
        made=_made(found),
        warnings="".join(f'<p class="tag">{escape(each)}</p>' for each in found.warnings()),
        funnel=charts.bars(_funnel(found), log=True, kind="funnel kept"),
        stages="".join(_stage(found, stage) for stage in Stage),
        similarity=f"The kept pairs have {found.similarity:.3f} on average.",
        histogram=charts.histogram(
            found.kept, found.dropped, thresholds=[threshold for _, threshold in found.models]
        ),
        images_over_time=charts.timeline(found.work, what="images"),
        pairs_over_time=charts.timeline(found.work, what="pairs"),
        domains=charts.bars(
            [(host, n, percentage(n, found.pairs)) for host, n in found.domains.items()],
            kind="kept",
        ),
        kept="".join(_figure(each) for each in gallery if each.kept),
        dropped="".join(_figure(each) for each in gallery if not each.kept),
        settings=_table(published_settings(job_values)),
        versions=_table(sorted(found.versions.items())),
        optouts=_optouts(found),
        opinions=_opinions(found),
    )


def _lead(found: Summary) -> str:
    models = " and ".join(
        f"<b>{escape(model)}</b> from a similarity of <b>{threshold:g}</b> on"
        for model, threshold in found.models
    )
    size = f"{found.bytes / 1e9:,.2f} GB" if found.bytes > 1e9 else f"{found.bytes / 1e6:,.1f} MB"
    if not found.shards:
        return "There is no finished shard in this dataset yet."
    return (
        f"<b>{plural(found.pairs, 'image–text pair')}</b> from {plural(found.shards, 'shard')} "
        f"of Common Crawl, {size}, kept by {models}."
    )


def _made(found: Summary) -> str:
    if not found.work:
        return ""
    first = min(each.started for each in found.work)
    last = max(each.finished for each in found.work)
    return f"Made from {_date(first)} to {_date(last)} (UTC)."


def _date(seconds: float) -> str:
    return time.strftime("%d %B %Y, %H:%M", time.gmtime(seconds)).lstrip("0")


def _funnel(found: Summary) -> list[tuple[str, int, str]]:
    """The steps, each with what share of the step before it is."""
    steps = found.funnel()
    notes = ["", f"{steps[1][1] / max(steps[0][1], 1):.1f} a record"]
    notes += [f"{percentage(n, of)} of {what}" for (what, of), (_, n) in pairwise(steps[1:])]
    return [(step, number, note) for (step, number), note in zip(steps, notes, strict=True)]


def _stage(found: Summary, stage: Stage) -> str:
    entered, left = found.tally.entered[stage], found.tally.left[stage]
    rows = [(reason.phrase, n, percentage(n, entered)) for reason, n in found.lost(stage)]
    return (
        f'<section class="card stage"><h3>{_STAGES[stage]}</h3>'
        f"<p>{left:,} of {entered:,} {stage.takes} became {stage.gives}: "
        f"{percentage(left, entered)}</p>"
        f'<div class="share"><i style="width:{100 * left / max(entered, 1):.2f}%"></i></div>'
        f"{charts.bars(rows, most=entered)}</section>"
    )


def _figure(shown: GalleryItem) -> str:
    """A pair; its caption and its address are as strange as the web."""
    blurred = "" if shown.nsfw == "UNLIKELY" else f'<span class="tag">{shown.nsfw}, blurred</span>'
    text = shown.text if len(shown.text) <= _CAPTION else shown.text[:_CAPTION] + "…"
    return (
        f'<figure class="card"><img src="data:image/jpeg;base64,{shown.jpeg}" alt="" '
        f'width="{shown.width}" height="{shown.height}" loading="lazy">'
        f"<figcaption><strong>{shown.similarity:.3f}</strong>{blurred}"
        f'<q dir="auto">{escape(text)}</q>'
        f'<a href="{escape(shown.url)}" rel="noopener noreferrer nofollow">'
        f"<bdi>{escape(host_of(shown.url))}</bdi></a></figcaption></figure>"
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f"<tr><th>{escape(name)}</th><td><bdi>{escape(value)}</bdi></td></tr>"
        for name, value in rows
    )


def _opinions(found: Summary) -> str:
    """Return a table of how CLIP's labels and the second classifier's scores agree."""
    if not found.opinions:
        return ""
    head = "".join(f"<th>{band}</th>" for band in NSFW_BANDS)
    rows = "".join(
        f"<tr><th>{escape(label)}</th>"
        + "".join(f"<td>{counts.get(band, 0):,}</td>" for band in NSFW_BANDS)
        + "</tr>"
        for label, counts in sorted(found.opinions.items(), reverse=True)
    )
    return (
        "<h2>Two opinions on safety</h2><p>The kept pairs by their label, which CLIP gives, and by "
        "the score of Yahoo's Open NSFW (nsfw_open), which looks at the picture alone.</p>"
        f'<div class="card"><table><tr><th></th>{head}</tr>{rows}</table></div>'
    )


def _optouts(found: Summary) -> str:
    if not (found.optouts or found.overruled):
        return "No owner of an image was found to refuse its use."
    heard = (
        f" refused in a form that the profile of consent does not honour, and not left out for "
        f"that: {plural(found.overruled, 'candidate')};"
    )
    return (
        f"Left out because their owners refuse it: {plural(found.optouts, 'image')};"
        f"{heard if found.overruled else ''} the evidence is in optouts/."
    )
