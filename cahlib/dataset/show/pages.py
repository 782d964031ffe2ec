"""Rewrite the files that describe a whole dataset: the report, the card, the tars' sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from cahlib.dataset import description
from cahlib.dataset.description import displayed_settings, find_description, write_description
from cahlib.dataset.layout import CURRENT_LAYOUT
from cahlib.dataset.maintain.numbering import number_tars
from cahlib.dataset.show.card import render_card
from cahlib.dataset.show.report import render_report
from cahlib.dataset.show.summary import summarize
from cahlib.dataset.storage.files import files_at
from cahlib.dataset.storage.hashed_file import FileRecord
from cahlib.dataset.tar_index import TAR_CARD_FILE, write_tar_index


def write_pages(place: str | Path, job_values: Mapping[str, Any]) -> None:
    """Write the pages of the dataset at a place; ``job_values`` are those of `Job.values`.

    What they lack is taken from the dataset's own description, as a copy has no job. Nobody else
    may write to it meanwhile. The tars of a folder that is not uploaded are numbered first.
    """
    if isinstance(place, Path) and "://" not in str(job_values.get("output")):
        number_tars(place)
    said = find_description(place)
    job_values = {**(displayed_settings(said) if said else {}), **job_values}
    found, there, name = summarize(place), files_at(place), PurePath(place).name
    pages = {
        "report.html": render_report(found, name, job_values),
        "README.md": render_card(found, name, job_values),
    }
    encoded = {path: page.encode("utf-8", "replace") for path, page in pages.items()}
    for path, data in encoded.items():
        there.write(path, data)
    layout = description.layout_of(place) or CURRENT_LAYOUT
    write_tar_index(place, found.tars, found.forms, (found.scores, found.extras), layout)
    if said:
        if found.tars:
            encoded[TAR_CARD_FILE] = there.read(TAR_CARD_FILE)
        records = {
            path: FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in encoded.items()
        }
        write_description(place, replace(said, pages=records))
