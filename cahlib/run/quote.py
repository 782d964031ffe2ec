"""A quote: the servers, price and estimate of a job, shown before a run and required to order."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from cahlib.core.config import Job, replace_settings
from cahlib.core.requirements import require_source
from cahlib.core.retry_shards import parse_attempt
from cahlib.core.run_directory import RunDirectory
from cahlib.core.wording import plural
from cahlib.crawl.shards import count_shards
from cahlib.crawl.tables.listing import estimate_rows
from cahlib.dataset.description import stored_job
from cahlib.ledger.local import listed_shards
from cahlib.run.disk_space import describe_disk_space
from cahlib.run.estimate import Estimate, ServerPrice, estimate_run

#: Seconds for which prices and stock are considered current.
_VALID = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The quote for exactly one job and token."""

    job: Job
    token: str = field(repr=False)
    estimate: Estimate | None = None  #: None if it is unknown how many cores will scrape
    room: str = ""  #: the free disk space and what is needed, as far as known
    table: str = ""  #: the servers, for people
    terms: tuple[str, ...] = ()  #: what they cost, when they are deleted, and which exist already
    servers: int = 0
    price: str = ""  #: of all servers, per hour
    ceiling: str = ""  #: the most they may cost; "" without a limit
    crash_note: str = ""  #: what a crash of this machine would cost
    made: float = field(default_factory=time.monotonic, compare=False)

    def holds(self, job: Job, token: str) -> bool:
        """Return whether this is the quote for a job and token, with current prices."""
        fresh = not self.servers or time.monotonic() - self.made < _VALID
        return fresh and (self.job, self.token) == (job, token)

    @property
    def order(self) -> str:
        """Return what would be ordered, as a phrase after "Order"; "" without servers."""
        if not self.servers:
            return ""
        what = plural(self.servers, "server")
        return f"{what} for at most {self.ceiling}" if self.ceiling else f"{what} at {self.price}"

    @property
    def sentences(self) -> tuple[str, ...]:
        """Return the sentences below the table, some of them ""."""
        return *self.terms, str(self.estimate or ""), self.room, self.crash_note


def make_quote(job: Job, token: str, *, shards: int | None = None) -> Quote:
    """Return the quote for a job, without creating anything; raise CahError.

    ``shards`` are those to process, if they are not all of the job's.
    """
    if shards is None:
        counted = job if job.place.tracker else _counted(job)
    else:
        counted = replace_settings(job, shards=shards)
    if not job.place.has_servers:
        estimate = None if job.place.engine else estimate_run(counted)
        return Quote(job=job, token=token, estimate=estimate, room=describe_disk_space(counted))
    from cahlib.run.scrapers import plan_job_servers, swarm_directory
    from cahlib.swarm.lifecycle import existing_servers

    plan = plan_job_servers(job, token)
    money, limits = plan.currency, plan.limits
    left = limits.max_cost - limits.spent if limits.max_cost else math.inf
    price = ServerPrice(cores=plan.cores(), hourly=plan.hourly(), currency=money, left=left)
    return Quote(
        job=job,
        token=token,
        estimate=estimate_run(counted, price),
        table=plan.table(),
        terms=(plan.terms(), existing_servers(plan, swarm_directory(job))),
        room=describe_disk_space(counted),
        servers=len(plan.first),
        price=f"{money} {plan.hourly():.3f} an hour",
        crash_note=plan.crash_note(),
        ceiling=f"{money} {left:.2f}" if limits.max_cost else "",
    )


def _listed(job: Job) -> int:
    """Return how many shards an earlier launch of a job made of its tables; 0 if there was none."""
    home = RunDirectory(job.output.folder)
    before = stored_job(home.dataset)
    if before is None or before.crawl != job.crawl:
        return 0
    return sum(not parse_attempt(each)[1] for each in listed_shards(home.ledger))


def _taken(job: Job) -> Collection[str]:
    """Return the names that no column of a job's tables may have."""
    if not job.crawl.extra_columns:
        return ()
    from cahlib.dataset.write.columns import TAKEN  # of pyarrow, which a plan can do without

    return TAKEN


def _counted(job: Job) -> Job:
    """Return a job with as many shards as there are, and a table's rows in each, if known."""
    require_source(job.crawl)
    rows = estimate_rows(job.crawl, contact=job.download.contact, taken=_taken(job))
    if not rows:
        return replace_settings(job, shards=count_shards(job.crawl))
    shards = _listed(job) or sum(math.ceil(each / job.crawl.shard_links) for each in rows)
    least = min(shards, job.crawl.shards or shards)
    return replace_settings(job, shards=least, shard_links=max(1, sum(rows) // shards))
