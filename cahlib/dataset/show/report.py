"""Write report.html: one self-contained page on a dataset.

It is made from the manifests, so it covers all launches of a run; the dataset's files are not read.
The page loads nothing, and its policy forbids it to: the texts in it come from the web and are
hostile until they are escaped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from cahlib.core.records import Stage
from cahlib.dataset.show.charts import BarRow, bar_rows, histogram, timeline
from cahlib.dataset.show.summary import (
    Summary,
    percentage,
    published_cascade,
    published_settings,
)
from cahlib.dataset.show.templates import page_template
from cahlib.model.open_nsfw import NSFW_BANDS


def render_report(found: Summary, name: str, job_values: Mapping[str, Any]) -> str:
    """Return the page on a summary."""
    size = f"{found.bytes / 1e9:,.2f} GB" if found.bytes > 1e9 else f"{found.bytes / 1e6:,.1f} MB"
    return page_template("report.html").render(
        title=name,
        found=found,
        size=size,
        stage_counts=bar_rows(_stage_counts(found), log=True),
        stages=[_stage(found, stage) for stage in Stage],
        histogram=histogram(
            found.kept, found.dropped, thresholds=[threshold for _, threshold in found.models]
        ),
        images_over_time=timeline(found.work, what="images"),
        pairs_over_time=timeline(found.work, what="pairs"),
        domains=bar_rows(
            [(host, n, percentage(n, found.pairs)) for host, n in found.domains.items()]
        ),
        samples=found.samples,
        cascade=published_cascade(job_values),
        settings=published_settings(job_values),
        day=_day,
        versions=sorted(found.versions.items()),
        bands=NSFW_BANDS,
    )


def _day(seconds: float) -> str:
    return time.strftime("%d %B %Y, %H:%M", time.gmtime(seconds)).lstrip("0")


def _stage_counts(found: Summary) -> list[tuple[str, int, str]]:
    """Return the steps, each with its share of the step before it."""
    steps = found.stage_counts()
    notes = ["", f"{steps[1][1] / max(steps[0][1], 1):.1f} per record"]
    notes += [f"{percentage(n, of)} of {what}" for (what, of), (_, n) in pairwise(steps[1:])]
    return [(step, number, note) for (step, number), note in zip(steps, notes, strict=True)]


def _stage(found: Summary, stage: Stage) -> tuple[Stage, int, int, str, list[BarRow]]:
    """Return what entered and left a stage, and why the rest was dropped."""
    entered, left = found.stats.entered[stage], found.stats.left[stage]
    rows = [(reason.phrase, n, percentage(n, entered)) for reason, n in found.drop_counts(stage)]
    return stage, entered, left, percentage(left, entered), bar_rows(rows, most=entered)
