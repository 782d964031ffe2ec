"""An estimate of whether the disk has room for the rest of a run, given before the run begins.

It never stops a run: images vary by far more than any estimate, and a full disk loses no finished
work.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from cahlib.core.config import Job
from cahlib.core.errors import CahError
from cahlib.core.rates import rates_for
from cahlib.core.retry_shards import parse_attempt
from cahlib.core.wording import plural
from cahlib.dataset.layout import has_images
from cahlib.dataset.manifest import read_manifests

#: The bytes kept of a folder when a session ends, however large its disk (Kaggle's documentation).
_SAVED = {Path("/kaggle/working"): 20 * 10**9}


def describe_disk_space(job: Job) -> str:
    """Return the free space and what the job needs, as far as known; "" if not."""
    folder = job.output.folder
    try:
        free = free_space(folder)
    except OSError:  # the run reports what is wrong
        return ""
    said = f"The dataset's disk has {format_size(free)} free."
    for each, most in _saved(folder):
        said = f"{format_size(free)} more can be saved: {each} keeps at most {format_size(most)}."
    if job.output.url and not job.output.keep_local:
        return said  # a shard at a time
    done, size = committed_size(folder)
    left = job.crawl.shards - done
    if left <= 0:
        return said
    if done:
        need = left * size // done
        said += (
            f" {plural(done, 'shard')} took {format_size(size)}, so {left:,} more will take about "
        )
    else:
        pairs = round(left * rates_for(job).pairs[0])
        need = pairs * job.download.min_bytes if has_images(job.forms) else 0
        said += f" {plural(left, 'shard')} will take at least "
    short = " That is not enough: make room, or give fewer --shards." if need > free else ""
    return f"{said}{format_size(need)}.{short}"


def free_space(folder: Path) -> int:
    """Return how many more bytes can be written to a folder and kept; raise OSError."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    return min([free, *(max(0, most - folder_size(each)) for each, most in _saved(folder))])


def _saved(folder: Path) -> list[tuple[Path, int]]:
    return [(each, most) for each, most in _SAVED.items() if folder.absolute().is_relative_to(each)]


def folder_size(folder: Path, *, but: Path | None = None) -> int:
    """Return the bytes of a folder's files, except those in the folder ``but``."""
    size = 0
    for place, inner, names in os.walk(folder):
        if but and Path(place) == but.parent and but.name in inner:
            inner.remove(but.name)
        for name in names:
            with suppress(OSError):  # it was renamed just now
                size += os.stat(os.path.join(place, name)).st_size
    return size


def committed_size(folder: Path) -> tuple[int, int]:
    """Return the number of shards in the dataset, but for retries, and the bytes of all."""
    done = size = 0
    with suppress(CahError):  # the run reports damaged manifests
        for each in read_manifests(folder):
            done += not parse_attempt(each.shard.id)[1]
            size += sum(stored.size for stored in each.files.values())
    return done, size


def format_size(size: int) -> str:
    """Return a number of bytes in the unit that people use."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
