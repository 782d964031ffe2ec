"""`cah worker` and `cah gpu`: one half of the work of a tracker's shards each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from cahlib.commands.console import print_result, print_run
from cahlib.core.config import Job
from cahlib.core.errors import MissingSetting
from cahlib.core.terminal import report_stopped
from cahlib.core.wording import plural

#: Makes a Job of what was typed, and runs a function of it under the eyes of the user: the CLI's.
Follow = Callable[[argparse.Namespace, Callable[..., Any]], Any]


def add(commands: Any, follow: Follow) -> None:
    """Add both commands; they take the settings of a run."""
    worker = commands.add_parser(
        "worker",
        help="scrape for a tracker, without a GPU",
        description="Scrape shards of a tracker's crawl and upload them for others to judge.",
        example="cah worker --tracker http://tracker.example.org:8000 --nickname ada "
        "--contact https://example.org/crawl",
    )
    worker.add_json()
    worker.add_settings("worker")
    worker.set_defaults(act=lambda chosen: _worker(chosen, follow), works=True)
    gpu = commands.add_parser(
        "gpu",
        help="judge what others scraped for a tracker",
        description="Download what others scraped for a tracker's crawl, judge it, and make a "
        "dataset of it.",
        example="cah gpu --tracker http://tracker.example.org:8000 --nickname ada",
    )
    gpu.add_json()
    gpu.add_settings("gpu")
    gpu.set_defaults(act=lambda chosen: _gpu(chosen, follow), works=True, extra="gpu")


def _worker(chosen: argparse.Namespace, follow: Follow) -> int:
    from cahlib.run.worker import work_for_tracker

    outcome = follow(chosen, lambda job, *a, **k: work_for_tracker(_with_tracker(job), *a, **k))
    result = {"parcels": outcome.parcels, "stopped": outcome.stopped}
    print_result(chosen, result, [f"{plural(outcome.parcels, 'parcel')} delivered."])
    return report_stopped() if outcome.stopped else 0


def _gpu(chosen: argparse.Namespace, follow: Follow) -> int:
    from cahlib.run.pipeline import run

    outcome = follow(chosen, lambda job, *a, **k: run(_with_tracker(job), *a, role="gpu", **k))
    done = f"{plural(outcome.shards.done, 'shard')} judged; the dataset is in {outcome.folder}."
    print_run(chosen, outcome, [done])
    return report_stopped() if outcome.stopped else 0


def _with_tracker(job: Job) -> Job:
    if not job.place.tracker:
        raise MissingSetting("tracker: give the URL of the tracker to work for.")
    return job
