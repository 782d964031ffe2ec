"""Which servers a swarm should have: the cheapest useful cores, and what they will cost.

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

#: How much dearer than the best one a core may be in a place that the swarm is spread over.
MAX_SPREAD = 1.15

#: GB that a node needs for its system and perhaps the scheduler, and for each of its scrapers. A
#: scraper with 256 connections was measured at 200 MiB, its nanny at 70, the scheduler at 80.
_SYSTEM_MEMORY, _SCRAPER_MEMORY = 0.75, 0.3

#: Scrapers of a node, for which its service has ports.
_MAX_SCRAPERS = 50

#: GB below which no server is a node.
_MIN_MEMORY = 2

#: Types that a plan shows.
_MAX_SHOWN = 12

#: Most servers of a swarm.
_MAX_NODES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Which servers are wanted, and what they may cost."""

    nodes: int = 0  #: how many servers; or
    cores: int = 0  #: how many cores, on as many servers as is cheapest
    location: str = ""  #: "" = spread over those that cost nearly the same
    server_type: str = ""  #: "" = the cheapest cores that fit
    max_cost: float = 0  #: in the accounts' currency; 0 = no ceiling
    hours: float = 0  #: 0 = until the work is done
    spent: float = 0  #: by the run so far
    watchdog: float = 0  #: minutes after which the head deletes them if nobody drives; 0 = never
    arm: bool = False  #: whether what nodes need can be installed on arm64

    @property
    def whole_hours(self) -> int:
        """Return the hours to be paid at least: a started one counts whole."""
        return max(1, math.ceil(self.hours))


def scraper_count(cores: int, memory: float) -> int:
    """Return how many scrapers a server can run: one a core, as far as its memory (GB) goes."""
    return max(min(cores, int((memory - _SYSTEM_MEMORY) / _SCRAPER_MEMORY), _MAX_SCRAPERS), 0)


def useful_cores(offer: Offer) -> int:
    """Return how many cores of a server will scrape."""
    return scraper_count(offer.cores, offer.memory)


def core_price(offer: Offer) -> float:
    """Return the price of one useful core for an hour, with its share of IPv4 and tax."""
    return offer.hourly / useful_cores(offer) if useful_cores(offer) else math.inf


def offer_rank(offer: Offer) -> tuple[float, float, str]:
    """Sort offers: the cheapest core first, then the cheapest server."""
    return core_price(offer), offer.hourly, offer.type


def choose_offers(
    options: Sequence[AccountOffer],
    limits: ServerLimits,
    have: Sequence[Offer] = (),
    *,
    spread: float = MAX_SPREAD,
    hourly: float = math.inf,
) -> list[AccountOffer]:
    """Return what to order, in this order, so that with what we ``have`` all that is wanted exists.

    Of several accounts that offer the same, the one that is listed first is taken. Servers of one
    size take turns over the places where it costs at most ``spread`` times as much as in the best.
    If all servers together can cost at most ``hourly``, they do; what costs more alone is left out.
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
    """Return the cheapest option of a size in each place, if it costs nearly the least."""
    sized = sorted(
        (each for each in options if useful_cores(each[1]) == size), key=lambda e: offer_rank(e[1])
    )
    dearest, near = spread * core_price(sized[0][1]), dict[str, AccountOffer]()
    for each in sized:
        if core_price(each[1]) <= dearest:
            near.setdefault(each[1].location, each)
    return near


def _sizes(options: Iterable[AccountOffer], cores: int) -> Iterator[int]:
    """Yield the sizes of servers that hold so many cores together for the least money."""
    cheapest = dict[int, float]()
    for _, offer in options:
        cheapest[useful_cores(offer)] = min(
            offer.hourly, cheapest.get(useful_cores(offer), math.inf)
        )
    best = [(0.0, 0, 0)]  #: of each number of cores: price, servers, and the last one's size
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
    """What will be made, where the clouds have stock."""

    limits: ServerLimits
    accounts: Sequence[Account]  #: those that can be used
    left_out: tuple[str, ...]  #: a sentence on each account that cannot
    offers: Mapping[str, Sequence[Offer]]  #: by account's name: what the run may order
    rejected: Mapping[Offer, str]  #: what it may not, and why
    currency: str
    hours: int  #: for which the ceiling is enough
    spread: float  #: see `choose_offers`
    first: Sequence[Offer]  #: what each server is hoped to be

    def options(self) -> list[AccountOffer]:
        """Return what may be ordered, an account after the other."""
        return [(each.name, offer) for each in self.accounts for offer in self.offers[each.name]]

    def offers_to_order(
        self, options: Sequence[AccountOffer], have: Sequence[Offer], left: float
    ) -> list[AccountOffer]:
        """Return what to order of these options beside what we have, for what is left to spend."""
        hourly = left / self.hours + 1e-9
        return choose_offers(options, self.limits, have, spread=self.spread, hourly=hourly)

    def hourly(self) -> float:
        """Return the price of an hour of all servers, with IPv4 and tax."""
        return sum(offer.hourly for offer in self.first)

    def cores(self) -> int:
        """Return how many cores will scrape."""
        return sum(map(useful_cores, self.first))

    def table(self) -> str:
        """Return the plan for people: what is made, and which types are not, and why."""
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
            "IPv4 and tax (a started hour counts whole)."
        )
        return "\n".join([*lines, *self.left_out])

    def _others(self, first: Mapping[Offer, int]) -> Iterator[tuple[Offer, str]]:
        """Yield the best offer of each type that is not taken, and why it is not."""
        dearest, limits = max(map(core_price, first)), self.limits
        left, why = limits.max_cost - limits.spent, dict(self.rejected)
        for _, offer in self.options():
            times = core_price(offer) / dearest
            if limits.max_cost and limits.nodes * offer.hourly * self.hours > left:
                why[offer] = "more than max_cost leaves"
                continue
            why[offer] = f"{times:.1f} times as dear a core" if times > 1.05 else "no cheaper"
        shown = {offer.type for offer in first}
        for offer in sorted(why, key=offer_rank):
            if offer.type not in shown and len(shown) < _MAX_SHOWN:
                shown.add(offer.type)
                yield offer, why[offer]

    def terms(self) -> str:
        """Return what holds while a run works with its servers."""
        limits = self.limits
        ceiling = f"At most {self.currency} {limits.max_cost:.2f}"
        end = f"after {plural(limits.hours, 'hour')}" if limits.hours else "when the work is done"
        return f"{ceiling if limits.max_cost else 'No ceiling'}; ends {end}."

    def crash_note(self) -> str:
        """Return what a crash of this machine would cost."""
        price = f"{self.currency} {self.hourly():.4f} an hour"
        end = "until somebody goes on with the run or types `cah swarm down`."
        if minutes := self.limits.watchdog:
            return (
                f"If this machine dies, the head deletes the servers {minutes:g} minutes later; "
                f"before the head is up, they go on costing {price} {end}"
            )
        return f"If this machine dies, the servers go on costing {price} {end}"

    def all_offers(self) -> dict[tuple[str, str], Offer]:
        """Return every offer by type and location, also those that are sold out."""
        every = (*self.rejected, *(offer for each in self.offers.values() for offer in each))
        return {(offer.type, offer.location): offer for offer in every}


def _row(count: str, offer: Offer, why: str = "") -> str:
    thousand = f"{1000 * core_price(offer):.2f}" if useful_cores(offer) else "-"
    return (
        f"{count:>5}  {offer.type:<8} {offer.location:<6} {offer.cores:>5} {offer.memory:>4g} "
        f"{offer.hourly:>8.4f} {thousand:>20}  {why}"
    ).rstrip()


def plan_servers(accounts: Sequence[Account], limits: ServerLimits) -> ServerPlan:
    """Return what can be made now.

    Raises ConfigError for what cannot be, RunError if nothing that fits is to be had now.
    """
    if limits.nodes and limits.cores:
        raise ConfigError("cores: give either a number of servers or of cores, not both.")
    if not limits.cores and not 1 <= limits.nodes <= _MAX_NODES:
        raise ConfigError(f"swarm: {limits.nodes} nodes is not possible; give 1 to {_MAX_NODES}.")
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
            f"no server that fits is available now ({_reasons(why, limits)}); {open_them}"
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
    """Return why an offer is not taken into account; "" if it is."""
    if limits.location not in ("", offer.location):
        return f"not at {limits.location}"
    if limits.server_type not in ("", offer.type):
        return f"not of type {limits.server_type}"
    return _unfit_reason(offer, limits) or offer.unavailable


def _reasons(why: Mapping[Offer, str], limits: ServerLimits) -> str:
    """Return which types that were asked for are not taken, by the reason."""
    types = defaultdict[str, set[str]](set)
    for each, said in why.items():
        if limits.location in ("", each.location) and limits.server_type in ("", each.type):
            types[said].add(each.type)
    return "; ".join(f"{', '.join(sorted(those))}: {said}" for said, those in types.items())


def _unfit_reason(offer: Offer, limits: ServerLimits) -> str:
    """Return why no node can be made of such a server; "" if one can."""
    if offer.architecture == "arm" and not limits.arm:
        return "arm64: the language detector (pycld2) has no wheel"
    if offer.memory < _MIN_MEMORY or useful_cores(offer) < 1:
        return f"too little memory (at least {_MIN_MEMORY} GB)"
    return ""


def _affordable(
    offers: Mapping[str, Sequence[Offer]], limits: ServerLimits, currency: str
) -> tuple[int, float, list[Offer]]:
    """Return for how many hours the ceiling is enough, how far to spread, and what to order.

    The hours are all that are wanted if that can be, else one. Raises ConfigError if even that
    cannot be.
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
    gone = f", of which {limits.spent:.2f} are spent" if limits.spent else ""
    raise ConfigError(
        f"max_cost: one hour of {plural(limits.cores or limits.nodes, what)} costs {currency} "
        f"{sum(map(_hourly_price, cheapest)):.4f}, more than the ceiling of {currency} "
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
            why = f"does not serve ({unfit.pop()})" if unfit else "is not offered now"
            raise ConfigError(f"{name}: {value!r} {why}; choose from {', '.join(sorted(known))}.")


def _common_currency(offers: Iterable[Iterable[Offer]]) -> str:
    found = sorted({offer.currency for those in offers for offer in those})
    if len(found) > 1:
        raise ConfigError(
            f"HCLOUD_TOKEN: its accounts pay in {' and '.join(found)}, which cannot be compared; "
            "give tokens of accounts with one currency."
        )
    return found[0] if found else "EUR"
