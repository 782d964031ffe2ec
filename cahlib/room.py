"""Whether a run's disk has room for what is still to come, said before the run begins.

A run is never refused for it: images differ by far more than any guess, and a full disk costs
nothing that is done.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from cahlib.config import Job
from cahlib.dataset.layout import has_images
from cahlib.dataset.manifest import read_manifests
from cahlib.errors import CahError
from cahlib.words import plural

#: Pairs that a shard brings at least, by Crawling@Home's figures: 1,000 to 1,500 a WAT file.
_PAIRS = 500


def told(job: Job) -> str:
    """Return what the disk has and what the job needs, as far as that can be known; "" if not."""
    folder = job.output.folder
    try:
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    except OSError:  # the run itself says what is wrong with the place
        return ""
    said = f"The disk of {folder} has {sized(free)} free."
    if job.output.url and not job.output.keep_local:
        return said  # a shard at a time
    done, taken = so_far(folder)
    left = job.crawl.shards - done
    if left <= 0:
        return said
    if done:
        need = left * taken // done
        said += (
            f" The shards so far ({done:,}) took {sized(taken)}, so {left:,} more will take about "
        )
    else:
        need = left * _PAIRS * (job.download.min_bytes if has_images(job.output.forms) else 0)
        said += f" {plural(left, 'shard')} will take at least "
    short = " That is not enough: make room, or give fewer --shards." if need > free else ""
    return f"{said}{sized(need)}.{short}"


def so_far(folder: Path) -> tuple[int, int]:
    """The shards in the dataset, and the bytes that they take."""
    done = taken = 0
    with suppress(CahError):  # what is damaged is told of by the run
        for each in read_manifests(folder):
            done, taken = done + 1, taken + sum(stored.size for stored in each.files.values())
    return done, taken


def sized(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
