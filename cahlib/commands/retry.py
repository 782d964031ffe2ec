"""`cah retry`: fetch the failed links of a dataset again, as new shards of it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from cahlib.commands.console import print_result, print_run_trouble
from cahlib.commands.parser import typed_settings
from cahlib.core.config import Job, replace_settings
from cahlib.core.records import Stage
from cahlib.core.requirements import require_contact
from cahlib.core.retry_shards import TEMPORARY_REASONS, parse_reasons
from cahlib.core.settings import Setting
from cahlib.core.terminal import print_note, report_stopped
from cahlib.core.wording import plural
from cahlib.run.environment import read_environment

if TYPE_CHECKING:
    from cahlib.run.retry import RetryResult
    from cahlib.run.retry_plan import RetryPlan

_T = TypeVar("_T")

#: Does the work of a job with so many shards under the eyes of the user, or returns None if the
#: user does not want its servers: the CLI's.
Launch = Callable[[Job, int, Callable[..., _T]], _T | None]

#: Settings of a run that a retry does not take: its dataset decides them.
_LEFT_OUT = {"output", "shards", "base_url", "tracker", "team", "outcomes"}


def add(commands: Any, launch: Launch[Any]) -> None:
    """Add the command; it takes the settings that may differ from those of the dataset's run."""
    retry = commands.add_parser(
        "retry",
        help="fetch the failed links of a dataset again",
        description="Fetch links of a dataset again that failed for what may be over by now, and "
        "add what arrives to\nthe dataset as new shards. Nothing that is there is changed, and the "
        "settings are those that made\nit. Run the same command again to continue.",
        example="cah retry demo-dataset --only timeout,dns",
    )
    retry.add_dataset(dest="output")
    named = ",".join(each.value for each in TEMPORARY_REASONS)
    retry.add_argument(
        "--only", default=named, metavar="REASONS",
        help=f"retry links that failed for these reasons, separated by commas [{named}]",
    )  # fmt: skip
    retry.add_argument(
        "--older-than", default="0m", metavar="AGE",
        help="retry links whose last attempt is at least this old, such as 12h or 7d [0m]",
    )  # fmt: skip
    retry.add_json()
    retry.add_settings("retry", is_taken)
    retry.set_defaults(
        act=lambda chosen: _retry(chosen, launch), looks_after=True, works=True, extra="gpu"
    )


def is_taken(setting: Setting) -> bool:
    """Return whether the command takes a setting of runs."""
    option = setting.option
    return (option.free or option.file) and setting.name not in _LEFT_OUT


def _retry(chosen: argparse.Namespace, launch: Launch[Any]) -> int:
    from cahlib.crawl.blocklists import Blocklists
    from cahlib.run.dataset_job import dataset_job
    from cahlib.run.retry import require_own_shards, retry_links
    from cahlib.run.retry_plan import parse_age, plan_retry

    reasons, age = parse_reasons(chosen.only), parse_age(chosen.older_than)
    typed = {name: each for name, each in typed_settings(chosen).items() if name != "output"}
    job = dataset_job(chosen.output, typed, read_environment())
    job = replace_settings(job, outcomes=True)  # or the next retry would not know of this one
    require_own_shards(job)
    require_contact(job)
    blocked = Blocklists.load(job.crawl)
    plan = plan_retry(job, reasons, before=time.time() - age, blocked=blocked)
    for note in plan.notes:
        print(f"cah: {note}", file=sys.stderr)
    print_note(*_planned(plan))
    result = launch(job, len(plan.shards), lambda *a, **k: retry_links(a[0], plan, *a[1:], **k))
    if result is None:
        return 2
    print_result(chosen, _as_json(chosen.output, result), [_summary(result)])
    print_run_trouble(result.run)
    if result.run.stopped:
        return report_stopped(len(plan.shards) - result.shards, len(plan.shards))
    return 1 if result.run.shards.failed or result.run.faults else 0


def _planned(plan: RetryPlan) -> list[str]:
    """Return what will be fetched, as lines."""
    links = plan.links.total()
    if plan.begun:
        done = plan.begun - len(plan.shards)
        begun = (
            f"A retry for these reasons was interrupted after {done:,} of {plan.begun:,} shards;"
        )
        return [f"{begun} it goes on."]
    if not links:
        return ["No link failed for these reasons; there is nothing to fetch again."]
    counts = ", ".join(f"{number:,} {reason}" for reason, number in plan.links.most_common())
    where = plural(len(plan.shards), "shard")
    return [f"{plural(links, 'link')} of {where} will be fetched again: {counts}."]


def _summary(result: RetryResult) -> str:
    stats = result.stats
    images, pairs = stats.left[Stage.FETCH], stats.left[Stage.JUDGE]
    return (
        f"{plural(result.links, 'link')} fetched again: {plural(images, 'image')} arrived, "
        f"{plural(pairs, 'pair')} added: {result.run.folder}"
    )


def _as_json(dataset: str, result: RetryResult) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "shards": result.shards,
        "links": result.links,
        "images": result.stats.left[Stage.FETCH],
        "pairs": result.stats.left[Stage.JUDGE],
        "failed": {reason.value: number for reason, number in result.failed().items()},
        "stopped": result.run.stopped,
    }
