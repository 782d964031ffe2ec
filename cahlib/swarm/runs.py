"""Runs that have servers at the clouds, and orphaned runs, which nobody works with."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cahlib.core.wording import plural, verb
from cahlib.swarm.provider import (
    HEARTBEAT_TIMEOUT,
    PROJECT_LABEL,
    Account,
    Offer,
    Server,
    is_in_use,
    last_used,
    list_servers,
    offers_by_type,
)

#: Seconds that the cloud's clock may be ahead of a driver's.
_CLOCK_SKEW = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmRun:
    """The servers of one run, as the clouds list them."""

    run: str
    servers: int
    age: float  #: seconds since the first of them was created
    worked: float  #: when they were last used or one was created: seconds since 1970
    hourly: float  #: price of all, with IPv4 and tax
    currency: str
    in_use: bool  #: whether somebody works with them

    def __str__(self) -> str:
        return (
            f"{plural(self.servers, 'server')} of run {self.run} {verb(self.servers)} still there, "
            f"and nobody works with {verb(self.servers, 'it', 'them')}: {self.currency} "
            f"{self.hourly:.4f} an hour"
        )


def list_runs(accounts: Sequence[Account], *, now: float | None = None) -> list[SwarmRun]:
    """Return every run that has servers in the accounts, the oldest first."""
    now, runs = now or time.time(), defaultdict[str, list[Server]](list)
    for server in list_servers(accounts, dict([PROJECT_LABEL])):
        runs[server.labels.get("run", "")].append(server)
    known = offers_by_type(accounts) if runs else {}
    found = [_run(name, servers, known, now) for name, servers in runs.items()]
    return sorted(found, key=lambda each: -each.age)


def orphaned_runs(
    accounts: Sequence[Account],
    *,
    but: Collection[str] = (),
    died: Mapping[str, float] = {},
    now: float | None = None,
) -> list[SwarmRun]:
    """Return the runs that have servers but no driver, except those in ``but``.

    ``died`` has the times at which drivers of runs were last alive; of other runs, a heartbeat that
    is some minutes old shows it.
    """
    now = now or time.time()
    return [
        each
        for each in list_runs(accounts, now=now)
        if each.run not in but
        and each.worked < max(now - HEARTBEAT_TIMEOUT, died.get(each.run, -math.inf) + _CLOCK_SKEW)
    ]


def orphan_warnings(
    accounts: Sequence[Account], *, but: Collection[str] = (), now: float | None = None
) -> list[str]:
    """Return a sentence about the servers of each orphaned run."""
    return [
        f"{each}, until you type `cah swarm down --run {each.run}`."
        for each in orphaned_runs(accounts, but=but, now=now)
    ]


def _run(
    name: str, servers: Sequence[Server], known: Mapping[tuple[str, str], Offer], now: float
) -> SwarmRun:
    offers = [o for s in servers if (o := known.get((s.type, s.location)))]
    return SwarmRun(
        run=name,
        servers=len(servers),
        age=now - min(each.created for each in servers),
        worked=max(map(last_used, servers)),
        hourly=sum(offer.hourly for offer in offers),
        currency=offers[0].currency if offers else "EUR",
        in_use=any(is_in_use(each, now) for each in servers),
    )
