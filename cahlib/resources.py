"""Where a run scrapes, and for how long: the part of a `Job` that is called place."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from cahlib.errors import ConfigError
from cahlib.settings import Checked, option

_HOST = r"([^\s/@:\[\]]+|\[[0-9a-fA-F:.]+\])"
_LOGIN = re.compile(r"https?://[^/]*@")
_TRACKER = re.compile(rf"https?://{_HOST}(:\d{{1,5}})?(/\S*)?")
_ENGINE = re.compile(rf"(tls|tcp)://{_HOST}:\d{{1,5}}/?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Checked):
    """Where the scraping runs, and for how long."""

    workers: int = option(
        0, "scraping processes; 0 = one less than this machine has cores", least=0, most=1024,
        free=True,
    )  # fmt: skip
    attempts: int = option(3, "how often a failing shard is tried", least=1, most=100, free=True)
    shard_minutes: float = option(
        120, "minutes after which a shard's scraping is given up", least=0.1, most=1440, free=True
    )
    tracker: str = option(
        "", "work for the tracker at this URL, which says what is read, together with others",
        free=True,
    )  # fmt: skip
    team: str = option("", "your team on the tracker's pages, as of when the run joins", free=True)
    swarm: int = option(
        0, "servers at Hetzner Cloud that scrape; 0 = this machine", least=0, most=1000, free=True
    )
    cores: int = option(
        0, "cores of such servers instead: as many servers as is cheapest", least=0, most=16_000,
        free=True,
    )  # fmt: skip
    location: str = option(
        "", "where servers are made; if not given, wherever they cost nearly the least", free=True
    )
    server_type: str = option("", "which servers; the cheapest cores if not given", free=True)
    max_cost: float = option(
        0, "most that the run's servers may cost, in the currency of their account (EUR); 0 = no "
        "ceiling", least=0, most=100_000, free=True,
    )  # fmt: skip
    watchdog: bool = option(
        False, "let the head delete the servers, with a token of its own (CAH_WATCHDOG_TOKEN), if "
        "this machine dies: whoever takes the head over can delete all of that token's project",
        free=True,
    )  # fmt: skip
    watchdog_minutes: float = option(
        60, "minutes without a sign of this machine after which it does", least=15, most=1440,
        free=True,
    )  # fmt: skip
    wheelhouse: str = option(
        "", "a folder of wheels for the servers, which else ask their registry", free=True
    )
    engine: str = option(
        "", "scrape on the Dask cluster at this address (tls://…, tcp://…) or of this ticket (a "
        "file)", free=True,
    )  # fmt: skip
    staging: str = option(
        "", "a URL (s3://…) that the cluster's workers and this machine share", free=True
    )
    hours: float = option(
        0, "stop cleanly after so many hours; 0 = when all is done", least=0, most=10_000, free=True
    )

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.swarm and self.cores:
            raise ConfigError("cores: give either a number of servers (swarm) or of cores.")
        if _LOGIN.match(self.tracker):
            raise ConfigError(
                "tracker: a name or password in its URL would be stored with the run, and is not "
                "sent; write it as http://HOST:8000."
            )
        if self.tracker and not _TRACKER.fullmatch(self.tracker):
            raise ConfigError(
                f"tracker: {self.tracker} is no http(s) URL; write it as http://HOST:8000."
            )
        if "://" in self.engine and not _ENGINE.fullmatch(self.engine):
            raise ConfigError(
                f"engine: {self.engine} is not an address; write it as tls://HOST:8786."
            )

    @property
    def has_servers(self) -> bool:
        """Return whether servers of the run's own scrape."""
        return bool(self.swarm or self.cores)

    @property
    def scrapers(self) -> int:
        """Return how many processes scrape, if this machine does: one core is left to the model."""
        return self.workers or max((os.cpu_count() or 2) - 1, 1)

    @property
    def is_costly(self) -> bool:
        """Return whether scrapers that wait cost money, or keep shards from other people."""
        return bool(self.has_servers or self.engine or self.tracker)
