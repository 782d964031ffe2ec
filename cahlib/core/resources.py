"""The settings of where a run scrapes, and of its limits."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from cahlib.core.errors import ConfigError
from cahlib.core.settings import Checked, option

_HOST = r"([^\s/@:\[\]]+|\[[0-9a-fA-F:.]+\])"
_LOGIN = re.compile(r"https?://[^/]*@")
_TRACKER = re.compile(rf"https?://{_HOST}(:\d{{1,5}})?(/\S*)?")
_ENGINE = re.compile(rf"(tls|tcp)://{_HOST}:\d{{1,5}}/?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources(Checked):
    """The settings of the place of a run, and of its limits."""

    workers: int = option(
        0, "scraping processes; 0 = one fewer than this machine has cores", least=0, most=1024,
        free=True, first="worker",
    )  # fmt: skip
    attempts: int = option(3, "attempts at a failing shard", least=1, most=100, free=True)
    shard_minutes: float = option(
        120, "minutes after which scraping a shard is abandoned", least=0.1, most=1440, free=True
    )
    tracker: str = option(
        "", "URL of a tracker to work for, together with others; it assigns the shards",
        free=True, topic="tracker", first="run worker gpu",
    )  # fmt: skip
    team: str = option(
        "", "your team on the tracker's pages, set when the run joins", free=True, topic="tracker",
        first="worker gpu",
    )  # fmt: skip
    swarm: int = option(
        0, "number of Hetzner Cloud servers to scrape with; 0 = scrape on this machine", least=0,
        most=1000, free=True, topic="servers", first="run up retry",
    )  # fmt: skip
    cores: int = option(
        0, "number of server cores instead: as many servers as is cheapest", least=0, most=16_000,
        free=True, topic="servers", first="up",
    )  # fmt: skip
    location: str = option(
        "", "where to create servers; by default wherever they cost close to the least", free=True,
        topic="servers", first="up",
    )  # fmt: skip
    server_type: str = option(
        "", "type of server; by default that with the cheapest cores", free=True, topic="servers",
        first="up",
    )  # fmt: skip
    max_cost: float = option(
        0, "most that the run's servers may cost, in their account's currency (EUR); 0 = no limit",
        least=0, most=100_000, free=True, topic="servers", first="run up retry",
    )  # fmt: skip
    watchdog: bool = option(
        False, "let the head delete the servers if this machine dies, with a token of its own "
        "(CAH_WATCHDOG_TOKEN): whoever takes over the head can delete that token's project",
        free=True, topic="servers", first="up",
    )  # fmt: skip
    watchdog_minutes: float = option(
        60, "minutes without a heartbeat from this machine after which --watchdog acts", least=15,
        most=1440, free=True, topic="servers",
    )  # fmt: skip
    wheelhouse: str = option(
        "", "folder of wheels for the servers, which otherwise use their package index", free=True,
        topic="servers",
    )  # fmt: skip
    engine: str = option(
        "", "Dask cluster to scrape on: its address (tls://…, tcp://…), or a ticket file",
        free=True, topic="cluster",
    )  # fmt: skip
    staging: str = option(
        "", "URL (s3://…) of storage that the cluster's workers share with this machine", free=True,
        topic="cluster",
    )  # fmt: skip
    hours: float = option(
        0, "hours after which to stop cleanly; 0 = when all is done", least=0, most=10_000,
        free=True, first="run worker gpu up",
    )  # fmt: skip

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        if self.swarm and self.cores:
            raise ConfigError("cores: give a number of servers (swarm) or of cores, not both.")
        if _LOGIN.match(self.tracker):
            raise ConfigError(
                "tracker: a login in its URL would be stored with the run, and is not sent; write "
                "it as http://HOST:8000."
            )
        if self.tracker and not _TRACKER.fullmatch(self.tracker):
            raise ConfigError(
                f"tracker: {self.tracker} is not an http(s) URL; write it as http://HOST:8000."
            )
        if "://" in self.engine and not _ENGINE.fullmatch(self.engine):
            raise ConfigError(
                f"engine: {self.engine} is not an address; write it as tls://HOST:8786."
            )

    @property
    def has_servers(self) -> bool:
        """Return whether the run creates servers to scrape."""
        return bool(self.swarm or self.cores)

    @property
    def scrapers(self) -> int:
        """Return how many processes scrape on this machine, leaving one core to the model."""
        return self.workers or max((os.cpu_count() or 2) - 1, 1)

    @property
    def is_costly(self) -> bool:
        """Return whether idle scrapers cost money, or keep shards from other people."""
        return bool(self.has_servers or self.engine or self.tracker)
