"""Retry failed links of a dataset: a run of the shards that a plan has for them."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from cahlib.core.config import Job
from cahlib.core.errors import ConfigError
from cahlib.core.progress import Listener, ignore_progress
from cahlib.core.records import DropReason, Stage, Stats
from cahlib.core.wording import plural
from cahlib.crawl.blocklists import Blocklists
from cahlib.dataset.maintain.purge import apply_changes
from cahlib.dataset.manifest import read_manifest, read_manifests
from cahlib.dataset.write.columns import Row
from cahlib.ledger.local import LocalLedger
from cahlib.run.open_run import open_run_directory
from cahlib.run.pipeline import run
from cahlib.run.result import RunResult
from cahlib.run.resume import resume
from cahlib.run.retry_plan import RETRY, RetryPlan, forget_plan, harmful_links, store_plan
from cahlib.run.scrapers import EngineFactory, open_scrapers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryResult:
    """The result of a retry."""

    run: RunResult  #: of the whole dataset
    shards: int  #: of this retry that are in the dataset
    stats: Stats  #: of these

    @property
    def links(self) -> int:
        """Return how many links were fetched again."""
        return self.stats.entered[Stage.FETCH]

    def failed(self) -> dict[DropReason, int]:
        """Return why links failed again, the most frequent reason first."""
        dropped = self.stats.dropped.most_common()
        return {reason: n for reason, n in dropped if reason.stage is Stage.FETCH and n}


def require_own_shards(job: Job) -> None:
    """Raise ConfigError for a dataset whose shards a tracker assigns."""
    if job.place.tracker:
        raise ConfigError(
            "tracker: this dataset's shards were assigned by a tracker, which lets each pair into "
            "one dataset and knows no retries; make a table of the failed links, for a dataset of "
            "their own (`cah guide maintenance` shows how)."
        )


def retry_links(
    job: Job,
    plan: RetryPlan,
    listener: Listener = ignore_progress,
    *,
    stop: threading.Event | None = None,
    scraping: EngineFactory = open_scrapers,
) -> RetryResult:
    """Fetch the links of a plan again, as new shards of the job's dataset; raise as `run` does."""
    require_own_shards(job)
    stop, folder = stop or threading.Event(), job.output.folder

    def enter(job: Job, ledger: LocalLedger) -> None:
        resume(job, ledger)
        store_plan(folder, plan)
        ledger.replace_retries(plan.shards)

    with open_run_directory(job, role=RETRY, stop=stop, resume=enter):
        pass
    result = run(job, listener, stop=stop, role=RETRY, scraping=scraping)
    made = [each for shard in plan.shards if (each := read_manifest(folder, shard.id))]
    if len(made) == len(plan.shards):
        _erase_harmful(job)
        forget_plan(folder, plan)
    return RetryResult(
        run=result, shards=len(made), stats=sum((each.stats for each in made), Stats())
    )


def _erase_harmful(job: Job) -> None:
    """Remove links from the outcomes of earlier attempts that a retry found to be harmful.

    A dataset must not become a list of them: what such a link failed by before would stand beside a
    retry that does not name it.
    """
    folder = job.output.folder
    if not (found := harmful_links(folder, Blocklists.load(job.crawl))):
        return
    if any(manifest.place for manifest in read_manifests(folder, damaged="skip")):
        _log.warning(
            "%s of harmful images stay in the outcomes at %s; copy the dataset here, and run the "
            "same command again to remove them.",
            plural(len(found), "link"),
            job.output.url,
        )
        return

    def why(row: Row) -> DropReason | None:
        return DropReason.PURGED if row["uid"] in found else None

    for _ in apply_changes(folder, RETRY, lambda row: None, why):
        pass
