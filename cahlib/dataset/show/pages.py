"""Make what describes a whole dataset, anew each time: the report, the card, the tars' sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cahlib.dataset import description, tar_index
from cahlib.dataset.layout import CURRENT_LAYOUT, PAGES
from cahlib.dataset.maintain import numbering
from cahlib.dataset.show import card, report
from cahlib.dataset.show.summary import summary
from cahlib.dataset.storage.files import files
from cahlib.dataset.storage.hashed_file import Stored


def write(place: str | Path, job_values: Mapping[str, Any]) -> None:
    """Make the pages of the dataset at a place; ``job_values`` are those of `Job.values`.

    Nobody else may write to it meanwhile. The tars of a folder that is brought nowhere get their
    numbers before.
    """
    if isinstance(place, Path) and "://" not in str(job_values.get("output")):
        numbering.number(place)
    report.write(place, job_values)
    card.write(place, job_values)
    found = summary(place)
    layout = description.layout_of(place) or CURRENT_LAYOUT
    tar_index.write(place, found.tars, found.forms, found.scores, layout)
    if said := description.found(place):
        there = files(place)
        made = {
            name: stored(there.read(name))
            for name in (*PAGES, *([tar_index.CARD] if found.tars else []))
        }
        description.write(place, replace(said, pages=made))


def stored(data: bytes) -> Stored:
    """Return what a page looks like."""
    return Stored(size=len(data), sha256=hashlib.sha256(data).hexdigest())
