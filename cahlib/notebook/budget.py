"""A budget in words, and the servers that it pays for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.core.wording import plural
from cahlib.run.estimate import cores_to_feed_model

#: The most cores that a budget buys: Crawling@Home's 100 one-core servers fed one RTX 3090.
_MOST = 100

_WORDS = re.compile(
    r"(?:eur|€)?\s*(\d+(?:[.,]\d+)?)\s*(?:eur|euros?|€)?\s*(?:,|;|/|for|in)?\s+(\d+(?:[.,]\d+)?)\s*"
    r"(?:h|hours?)\.?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits of a run: money and hours."""

    money: float
    hours: float


def parse_budget(text: str) -> Budget:
    """Return a budget as people write it; raises ConfigError."""
    found = _WORDS.fullmatch(text.strip())
    money, hours = (float(each.replace(",", ".")) for each in found.groups()) if found else (0, 0)
    if money <= 0 or hours <= 0:
        raise ConfigError("budget: write what may be spent and for how long, such as 10 EUR, 3 h.")
    return Budget(money=money, hours=hours)


def fit_to_budget(job: Job, token: str, budget: Budget) -> dict[str, str]:
    """Return the settings that spend a budget, as texts by name; asks for prices, makes nothing."""
    from cahlib.run.scrapers import plan_job_servers

    wanted = replace_settings(job, swarm=0, cores=_MOST, max_cost=0, hours=budget.hours)
    wanted = replace_settings(
        wanted, cores=min(_MOST, cores_to_feed_model(wanted))
    )  # more would find no more pairs
    price = plan_job_servers(wanted, token).hourly() * max(1, math.ceil(budget.hours))
    cores = affordable_cores(wanted.place.cores, price, budget.money)
    if not cores:
        raise ConfigError(
            f"budget: {budget.money:g} does not pay for a core for {plural(budget.hours, 'hour')}."
        )
    return {
        "swarm": "0",
        "cores": str(cores),
        "max_cost": f"{budget.money:g}",
        "hours": f"{budget.hours:g}",
    }


def affordable_cores(cores: int, price: float, money: float) -> int:
    """Return how many of some cores can be paid, by the price of all."""
    return min(cores, math.floor(cores * money / price + 1e-9)) if price else cores
