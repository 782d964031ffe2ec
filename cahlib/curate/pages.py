"""The pages that tell of a whole dataset: the report and the card, made anew each time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cahlib.curate import card, description, report
from cahlib.curate.layout import PAGES
from cahlib.curate.sink import Stored


def write(folder: Path, job_values: Mapping[str, Any]) -> None:
    """Make the pages of the dataset in a folder; ``job_values`` are those of `Job.values`."""
    report.write(folder, job_values)
    card.write(folder, job_values)
    if said := description.found(folder):
        made = {name: stored((folder / name).read_bytes()) for name in PAGES}
        description.write(folder, replace(said, pages=made))


def stored(data: bytes) -> Stored:
    """Return what a page looks like."""
    return Stored(size=len(data), sha256=hashlib.sha256(data).hexdigest())
