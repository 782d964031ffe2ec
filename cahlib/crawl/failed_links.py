"""Failed links in a file of their own, to be fetched again: written here, read where they are.

Such a file has a candidate a line, as the crawl or the table gave it at the first attempt, so that
neither is read again and no rule of texts can change its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from cahlib.core.atomic import new_file
from cahlib.core.path_map import local_path
from cahlib.core.records import Candidate, Stage, Stats

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Candidate)


def write_failed_links(path: Path, candidates: Iterable[Candidate]) -> None:
    """Write candidates into a file."""
    with new_file(path, sync=False) as file:
        for each in candidates:
            file.write(_encoder.encode(each) + b"\n")


def read_failed_links(path: str, stats: Stats) -> Iterator[Candidate]:
    """Yield the candidates of a file; one that was sent here is deleted at its end."""
    with open(local_path(path), "rb") as file:
        for line in file:
            stats.entered[Stage.CHOOSE] += 1
            stats.left[Stage.CHOOSE] += 1
            yield _decoder.decode(line)
    if local_path(path) != path:
        Path(local_path(path)).unlink(missing_ok=True)
