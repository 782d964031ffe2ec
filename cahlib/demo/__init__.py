"""The embedded default: a small web on loopback, a crawl of it, and a tiny CLIP.

The tiny CLIP can tell whether a drawing of a common thing belongs to an English caption that names
it. It has seen emoji only: it cannot judge photos, and of safety it is not even asked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cahlib.core.config import Crawl, Download, Job, Judge, Output
from cahlib.core.resources import Resources
from cahlib.core.run_directory import RunDirectory
from cahlib.demo.web import Web

if TYPE_CHECKING:
    from cahlib.demo.serve import ServedWeb

#: The tiny model's folder: open_clip's config, the weights and the words.
MODEL = Path(__file__).parent / "model"
NAME = "cah-tiny"
#: Safety categories that find nothing: the model cannot tell them.
SAFETY = MODEL / "safety.json"
#: Least cosine of a pair by the tiny model; see `cahlib.demo.evaluate` for what it lets through.
THRESHOLD = 0.22
#: Where the crawl lies on the demo's web, whatever the host.
WAT_PATH = "/crawl/demo.warc.wat.gz"
#: The largest file that the demo takes; one of its traps is larger.
MOST_BYTES = 1_000_000


def port(output: str) -> int:
    """The port that an earlier demo in this folder used, so that its run can go on; else 0."""
    try:
        before = json.loads(RunDirectory(Path(output)).job.read_text(encoding="utf-8"))
        return int(before["replay"].rpartition(":")[2])
    except (OSError, ValueError, KeyError, AttributeError):
        return 0


def job(output: str, web: Web | ServedWeb) -> Job:
    """The demo's run: the crawl of a served world, judged by the tiny CLIP."""
    return Job(
        crawl=Crawl(crawl=f"http://{web.address}{WAT_PATH}"),
        download=Download(
            contact="demo@example.com",
            replay=web.address,
            # so that what hangs for ever does so for a few seconds only
            connect_timeout=2,
            read_timeout=1.5,
            total_timeout=4,
            max_bytes=MOST_BYTES,
            per_second=0,  # all of its hosts are one server, which is ours
            max_failures=0,
        ),
        judge=Judge(model=str(MODEL), threshold=THRESHOLD, safety=str(SAFETY)),
        output=Output(output=output),
        place=Resources(workers=2),  # its two shards mostly wait for what hangs
    )
