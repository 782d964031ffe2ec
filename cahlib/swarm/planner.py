"""Plan the servers of a swarm: the cheapest useful cores, and their cost.

All functions but `plan_servers` are pure; that one asks each account once for its offers. Nothing
is created here.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.wording import plural
from cahlib.swarm.provider import Account, Offer, usable_accounts

#: An account's name, and what it offers.
AccountOffer: TypeAlias = tuple[str, Offer]

#: How many times the best price a core may cost in a location that the swarm is spread over.
MAX_SPREAD = 1.15

#: GB of memory for a node's system and perhaps the scheduler, and for each scraper. Measured: 200
#: MiB for a scraper with 256 connections, 70 for its nanny, 80 for the scheduler.
_SYSTEM_MEMORY, _SCRAPER_MEMORY = 0.75, 0.3

#: Most scrapers of a node, whose service has so many ports.
_MAX_SCRAPERS = 50

#: Least GB of memory of a node.
_MIN_MEMORY = 2

#: Most types that a plan shows.
_MAX_SHOWN = 12

#: Most servers of a swarm.
_MAX_NODES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """The servers that are wanted, and what they may cost."""

    nodes: int = 0  #: how many servers; or
    cores: int = 0  #: how many cores, on as many servers as is cheapest
    location: str = ""  #: "" = spread over those with nearly the same price
    server_type: str = ""  #: "" = the cheapest cores that fit
    max_cost: float = 0  #: in the accounts' currency; 0 = no limit
    hours: float = 0  #: 0 = until the work is done
    spent: float = 0  #: by the run so far
    watchdog: float = 0  #: minutes without a driver after which the head deletes them; 0 = never
    arm: bool = False  #: whether the nodes' requirements can be installed on arm64

    @property
    def whole_hours(self) -> int:
        """Return the hours that are billed at least: a started one is billed in full."""
        return max(1, math.ceil(self.hours))


def scraper_count(cores: int, memory: float) -> int:
    """Return how many scrapers a server can run: one per core, as its memory (GB) allows."""
    return max(min(cores, int((memory - _SYSTEM_MEMORY) / _SCRAPER_MEMORY), _MAX_SCRAPERS), 0)


def useful_cores(offer: Offer) -> int:
    """Return how many cores of a server will scrape."""
    return scraper_count(offer.cores, offer.memory)


def core_price(offer: Offer) -> float:
    """Return the hourly price of one useful core, with its share of IPv4 and tax."""
    return offer.hourly / useful_cores(offer) if useful_cores(offer) else math.inf


def offer_rank(offer: Offer) -> tuple[float, float, str]:
    """Return the sort key of an offer: the cheapest core first, then the cheapest server."""
    return core_price(offer), offer.hourly, offer.type


def choose_offers(
    options: Sequence[AccountOffer],
    limits: ServerLimits,
    have: Sequence[Offer] = (),
    *,
    spread: float = MAX_SPREAD,
    hourly: float = math.inf,
) -> list[AccountOffer]:
    """Return what to order, in this order, in addition to the servers that we ``have``.

    If several accounts offer the same, the first is used. Servers of one size alternate over the
    locations where it costs at most ``spread`` times the best price. All servers together cost at
    most ``hourly`` if that is possible; offers that cost more alone are left out.
    """
    options = [each for each in options if each[1].hourly <= hourly]
    if not options:
        return []
    if limits.cores:
        missing = limits.cores - sum(map(useful_cores, have))
        sizes = Counter(_sizes(options, missing))
    else:
        missing = limits.nodes - len(have)
        options = [each for each in options if missing * each[1].hourly <= hourly] or options
        best = min((offer for _, offer in options), key=offer_rank)
        sizes = Counter({useful_cores(best): missing})
    used, chosen = Counter(offer.location for offer in have), list[AccountOffer]()
    for size, count in sorted(sizes.items(), reverse=True):
        near = _near_cheapest(options, size, spread)
        for _ in range(count):
            place = min(near, key=lambda each: (used[each], offer_rank(near[each][1])))
            used[place] += 1
            chosen.append(near[place])
    return chosen[: max(_MAX_NODES - len(have), 0)]


def _near_cheapest(
    options: Iterable[AccountOffer], size: int, spread: float
) -> dict[str, AccountOffer]:
    """Return the cheapest offer of a size in each location with nearly the lowest price."""
    sized = sorted(
        (each for each in options if useful_cores(each[1]) == size), key=lambda e: offer_rank(e[1])
    )
    dearest, near = spread * core_price(sized[0][1]), dict[str, AccountOffer]()
    for each in sized:
        if core_price(each[1]) <= dearest:
            near.setdefault(each[1].location, each)
    return near


def _sizes(options: Iterable[AccountOffer], cores: int) -> Iterator[int]:
    """Yield the sizes of servers that together have so many cores at the lowest price."""
    cheapest = dict[int, float]()
    for _, offer in options:
        cheapest[useful_cores(offer)] = min(
            offer.hourly, cheapest.get(useful_cores(offer), math.inf)
        )
    best = [(0.0, 0, 0)]  #: for each number of cores: price, servers, and the size of the last
    for wanted in range(1, cores + 1):
        best.append(
            min(
                (best[max(0, wanted - size)][0] + price, best[max(0, wanted - size)][1] + 1, size)
                for size, price in cheapest.items()
            )
        )
    while cores > 0:
        yield (size := best[cores][2])
        cores -= size


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """The servers to create, as far as the clouds have them in stock."""

    limits: ServerLimits
    accounts: Sequence[Account]  #: with valid tokens
    left_out: tuple[str, ...]  #: a sentence about each account without
    offers: Mapping[str, Sequence[Offer]]  #: what the run may order, by account name
    rejected: Mapping[Offer, str]  #: what it may not order, and why
    currency: str
    hours: int  #: that max_cost allows
    spread: float  #: see `choose_offers`
    first: Sequence[Offer]  #: the first choice for each server

    def options(self) -> list[AccountOffer]:
        """Return what may be ordered, account by account."""
        return [(each.name, offer) for each in self.accounts for offer in self.offers[each.name]]

    def offers_to_order(
        self, options: Sequence[AccountOffer], have: Sequence[Offer], left: float
    ) -> list[AccountOffer]:
        """Return what to order of these offers beside what we have, for the money left."""
        hourly = left / self.hours + 1e-9
        return choose_offers(options, self.limits, have, spread=self.spread, hourly=hourly)

    def hourly(self) -> float:
        """Return the hourly price of all servers, with IPv4 and tax."""
        return sum(offer.hourly for offer in self.first)

    def cores(self) -> int:
        """Return how many cores will scrape."""
        return sum(map(useful_cores, self.first))

    def table(self) -> str:
        """Return the plan as text: what is created, which types are not, and why."""
        first = Counter(self.first)
        money = f"{self.currency}/h"
        lines = [
            f"{'nodes':>5}  {'type':<8} {'place':<6} {'cores':>5} {'GB':>4} {money:>8} "
            f"{'for 1,000 core hours':>20}"
        ]
        lines += [_row(str(count), offer) for offer, count in first.items()]
        lines += [_row("-", offer, why) for offer, why in self._others(first)]
        lines.append(
            f"{self.currency} {self.hourly():.4f} an hour for {plural(self.cores(), 'core')}, with "
            "IPv4 and tax (a started hour is billed in full)."
        )
        return "\n".join([*lines, *self.left_out])

    def _others(self, first: Mapping[Offer, int]) -> Iterator[tuple[Offer, str]]:
        """Yield the best offer of each type that is not used, and why."""
        dearest, limits = max(map(core_price, first)), self.limits
        left, why = limits.max_cost - limits.spent, dict(self.rejected)
        for _, offer in self.options():
            times = core_price(offer) / dearest
            if limits.max_cost and limits.nodes * offer.hourly * self.hours > left:
                why[offer] = "more than max_cost leaves"
                continue
            why[offer] = f"{times:.1f} times the price per core" if times > 1.05 else "no cheaper"
        shown = {offer.type for offer in first}
        for offer in sorted(why, key=offer_rank):
            if offer.type not in shown and len(shown) < _MAX_SHOWN:
                shown.add(offer.type)
                yield offer, why[offer]

    def terms(self) -> str:
        """Return the cost limit and the end of a run with these servers."""
        limits = self.limits
        limit = f"At most {self.currency} {limits.max_cost:.2f}"
        end = f"after {plural(limits.hours, 'hour')}" if limits.hours else "when the work is done"
        return f"{limit if limits.max_cost else 'No cost limit'}; ends {end}."

    def crash_note(self) -> str:
        """Return what would happen to the servers if this machine crashed."""
        price = f"{self.currency} {self.hourly():.4f} an hour"
        end = "until somebody continues the run or types `cah swarm down`."
        if minutes := self.limits.watchdog:
            return (
                f"If this machine dies, the head deletes the servers {minutes:g} minutes later; "
                f"before the head is up, they keep costing {price} {end}"
            )
        return f"If this machine dies, the servers keep costing {price} {end}"

    def all_offers(self) -> dict[tuple[str, str], Offer]:
        """Return every offer by type and location, including sold-out ones."""
        every = (*self.rejected, *(offer for each in self.offers.values() for offer in each))
        return {(offer.type, offer.location): offer for offer in every}


def _row(count: str, offer: Offer, why: str = "") -> str:
    thousand = f"{1000 * core_price(offer):.2f}" if useful_cores(offer) else "-"
    return (
        f"{count:>5}  {offer.type:<8} {offer.location:<6} {offer.cores:>5} {offer.memory:>4g} "
        f"{offer.hourly:>8.4f} {thousand:>20}  {why}"
    ).rstrip()


def plan_servers(accounts: Sequence[Account], limits: ServerLimits) -> ServerPlan:
    """Return the plan for what can be created now.

    Raise ConfigError for impossible limits, RunError if no suitable server is available now.
    """
    if limits.nodes and limits.cores:
        raise ConfigError("cores: give either a number of servers or of cores, not both.")
    if not limits.cores and not 1 <= limits.nodes <= _MAX_NODES:
        raise ConfigError(
            f"swarm: {limits.nodes} is not a valid number of nodes; give 1 to {_MAX_NODES}."
        )
    working, left_out = usable_accounts(accounts)
    every = {account.name: tuple(account.offers()) for account in working}
    _check_choices([offer for offers in every.values() for offer in offers], limits)
    currency = _common_currency(every.values())
    why = {offer: _rejection(offer, limits) for offers in every.values() for offer in offers}
    offers = {name: [o for o in of if not why[o]] for name, of in every.items()}
    if not any(offers.values()):
        chosen = [each for each in ("location", "server_type") if getattr(limits, each)]
        open_them = f"leave {' and '.join(chosen)} open, or " if chosen else ""
        raise RunError(
            f"no suitable server is available now ({_reasons(why, limits)}); {open_them}"
            "try again later."
        )
    hours, spread, first = _affordable(offers, limits, currency)
    return ServerPlan(
        limits=limits,
        accounts=working,
        left_out=tuple(left_out),
        offers=offers,
        rejected={offer: said for offer, said in why.items() if said},
        currency=currency,
        hours=hours,
        spread=spread,
        first=first,
    )


def _rejection(offer: Offer, limits: ServerLimits) -> str:
    """Return why an offer is not considered; "" if it is."""
    if limits.location not in ("", offer.location):
        return f"not at {limits.location}"
    if limits.server_type not in ("", offer.type):
        return f"not of type {limits.server_type}"
    return _unfit_reason(offer, limits) or offer.unavailable


def _reasons(why: Mapping[Offer, str], limits: ServerLimits) -> str:
    """Return the requested types that are not used, by reason."""
    types = defaultdict[str, set[str]](set)
    for each, said in why.items():
        if limits.location in ("", each.location) and limits.server_type in ("", each.type):
            types[said].add(each.type)
    return "; ".join(f"{', '.join(sorted(those))}: {said}" for said, those in types.items())


def _unfit_reason(offer: Offer, limits: ServerLimits) -> str:
    """Return why such a server cannot be a node; "" if it can."""
    if offer.architecture == "arm" and not limits.arm:
        return "arm64: the language detector (pycld2) has no wheel"
    if offer.memory < _MIN_MEMORY or useful_cores(offer) < 1:
        return f"too little memory (at least {_MIN_MEMORY} GB)"
    return ""


def _affordable(
    offers: Mapping[str, Sequence[Offer]], limits: ServerLimits, currency: str
) -> tuple[int, float, list[Offer]]:
    """Return how many hours max_cost allows, how far to spread, and what to order.

    The hours are all that are wanted if possible, else one. Raise ConfigError if it does not allow
    even one.
    """
    options = [(name, each) for name, those in offers.items() for each in those]
    left = (limits.max_cost - limits.spent if limits.max_cost else math.inf) + 1e-9
    for hours in (limits.whole_hours, 1):
        for spread in (MAX_SPREAD, 1.0):
            chosen = choose_offers(options, limits, spread=spread, hourly=left / hours)
            first = [offer for _, offer in chosen]
            if first and sum(each.hourly for each in first) <= left / hours:
                return hours, spread, first
    if limits.cores:
        what, cheapest = "core", [offer for _, offer in choose_offers(options, limits, spread=1)]
    else:
        what, cheapest = "node", limits.nodes * [min((o for _, o in options), key=_hourly_price)]
    gone = f", of which {limits.spent:.2f} is spent" if limits.spent else ""
    raise ConfigError(
        f"max_cost: one hour of {plural(limits.cores or limits.nodes, what)} costs {currency} "
        f"{sum(map(_hourly_price, cheapest)):.4f}, more than the limit of {currency} "
        f"{limits.max_cost:g}{gone}; raise it, or ask for fewer."
    )


def _hourly_price(offer: Offer) -> float:
    return offer.hourly


def _check_choices(offers: Sequence[Offer], limits: ServerLimits) -> None:
    fit = [each for each in offers if not (each.unavailable or _unfit_reason(each, limits))]
    for name, value, known in (
        ("location", limits.location, {each.location for each in fit}),
        ("server_type", limits.server_type, {each.type for each in fit}),
    ):
        if value and known and value not in known:
            unfit = {_unfit_reason(o, limits) for o in offers if o.type == value} - {""}
            why = f"is not suitable ({unfit.pop()})" if unfit else "is not offered now"
            raise ConfigError(f"{name}: {value!r} {why}; choose from {', '.join(sorted(known))}.")


def _common_currency(offers: Iterable[Iterable[Offer]]) -> str:
    found = sorted({offer.currency for those in offers for offer in those})
    if len(found) > 1:
        raise ConfigError(
            f"HCLOUD_TOKEN: its accounts pay in {' and '.join(found)}, which cannot be compared; "
            "give tokens of accounts with the same currency."
        )
    return found[0] if found else "EUR"
