"""Servers of one run over several accounts: planned, made, counted, deleted, and seen to be gone.

It does not know what runs on a server. Whatever happens inside `fleet`, nothing of the run is left
at the clouds after it, or the error says what is.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cahlib.errors import ConfigError, RunError, Stopped
from cahlib.swarm.provider import (
    PROJECT,
    Account,
    Bill,
    Denial,
    Denied,
    Offer,
    Server,
    Wish,
    everywhere,
    mark,
    ranked,
    worked,
)
from cahlib.swarm.signals import undisturbed

#: How many times dearer than planned a server may be, where that one is sold out.
_DEAR = 3

#: Euros that a sum may be off.
_ROUNDED = 1e-9

#: Seconds in which a request that was never answered may still make a server.
_LATE = 10.0

#: Seconds without a mark after which nobody works with servers any more.
_OVER = 300.0

#: Seconds for which deleting is tried again before what remains is reported.
_PATIENCE = 120.0

#: Seconds in which a deleted server leaves its account's list.
_LEAVES = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Which servers are wanted, and what they may cost."""

    nodes: int
    location: str = ""  #: "" = spread over all
    server_type: str = ""  #: "" = the cheapest cores that fit
    max_cost: float = 0  #: euros; 0 = no ceiling
    hours: float = 0  #: 0 = until the work is done


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be made, where the clouds have stock."""

    limits: Limits
    choices: Mapping[str, tuple[Offer, ...]]  #: by account's name, the best first
    #: euros an hour by type and location, of what is sold out too
    prices: Mapping[tuple[str, str], float]

    def first(self) -> list[Offer]:
        """The offer each node is hoped to get."""
        best = next(choice for choice in self.choices.values() if choice)
        places = list(dict.fromkeys(offer.location for offer in best))
        cheapest = {p: next(o for o in best if o.location == p) for p in places}
        return [cheapest[places[n % len(places)]] for n in range(self.limits.nodes)]

    def hourly(self) -> float:
        """Euros an hour of all nodes, with IPv4 and tax."""
        return sum(offer.hourly for offer in self.first())

    def table(self) -> str:
        """The plan for people."""
        offers = self.first()
        kinds = dict.fromkeys(offers)
        lines = [f"{'nodes':>5}  {'type':<8} {'place':<6} {'cores':>5} {'GB':>4} {'EUR/h':>8}"]
        lines += [
            f"{offers.count(o):>5}  {o.type:<8} {o.location:<6} {o.cores:>5} {o.memory:>4g} "
            f"{o.hourly:>8.4f}"
            for o in kinds
        ]
        limits = self.limits
        ceiling = f"at most EUR {limits.max_cost:.2f}" if limits.max_cost else "no ceiling"
        end = f"after {limits.hours:g} hours" if limits.hours else "when the work is done"
        lines.append(
            f"EUR {self.hourly():.4f} an hour with IPv4 and tax (a started hour counts whole); "
            f"{ceiling}; ends {end}."
        )
        return "\n".join(lines)


def plan(accounts: Sequence[Account], limits: Limits) -> Plan:
    """What can be made now; raises ConfigError before anything is, RunError if it cannot be."""
    if not 1 <= limits.nodes <= 1000:
        raise ConfigError(f"swarm: {limits.nodes} nodes is not possible; give 1 to 1000.")
    choices, prices = {}, dict[tuple[str, str], float]()
    for account in accounts:
        offers = account.offers()
        prices |= account.prices()
        _known(offers, limits)
        fit = ranked(offers, location=limits.location, server_type=limits.server_type)
        choices[account.name] = tuple(fit)
    if not any(choices.values()):
        raise RunError(
            "no server that fits is available now; leave location and server_type open, "
            "or try again later."
        )
    made = Plan(limits=limits, choices=choices, prices=prices)
    if limits.max_cost and made.hourly() > limits.max_cost:
        raise ConfigError(
            f"max_cost: one hour of {limits.nodes} nodes costs EUR {made.hourly():.4f}, more than "
            f"the ceiling of EUR {limits.max_cost:.2f}; raise it, or ask for fewer nodes."
        )
    return made


def _known(offers: Sequence[Offer], limits: Limits) -> None:
    for name, value, known in (
        ("location", limits.location, {o.location for o in offers}),
        ("server_type", limits.server_type, {o.type for o in offers}),
    ):
        if value and offers and value not in known:
            raise ConfigError(
                f"{name}: {value!r} is not offered now; choose from {', '.join(sorted(known))}."
            )


@dataclass(slots=True)
class Fleet:
    """The servers of one run."""

    accounts: Sequence[Account]
    run: str
    plan: Plan
    user_data: Callable[[str], str]  #: of a server, by its name
    tell: Callable[[str], None]
    clock: Callable[[], float] = time.time
    stop: threading.Event = field(default_factory=threading.Event)  #: set: no more are wanted
    listed: Mapping[str, Server] = field(default_factory=dict)  #: by name, as last heard
    _full: set[str] = field(default_factory=set)  #: accounts at their limit just now
    #: account, type, place: no stock just now
    _gone: set[tuple[str, str, str]] = field(default_factory=set)
    _unsure: set[str] = field(default_factory=set)  #: asked for, without an answer
    _bills: dict[str, Bill] = field(default_factory=dict)  #: by server's name
    _made: int = 0
    _deleted: set[str] = field(default_factory=set)  #: names: none of them comes again
    #: of `listed`, bills and what is deleted: by several threads; never held while a cloud is asked
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def labels(self) -> dict[str, str]:
        """What every server of the run carries."""
        return {PROJECT[0]: PROJECT[1], "run": self.run}

    def prepare(self, public_key: str) -> None:
        """Make keys and firewalls in every account."""
        for account in self.accounts:
            account.prepare(self.labels, public_key)

    def fill(self) -> None:
        """Make servers until there are as many as planned, or no account takes more.

        Raises RunError if not even one came up, or if no more are wanted.
        """
        self._full.clear()  # servers may be gone since, and others' too
        self._gone.clear()
        have = self.servers()
        while len(have) < self.plan.limits.nodes:
            if self.stop.is_set():
                raise Stopped("stopped while servers were being made.")
            role = "node" if any(s.labels.get("role") == "head" for s in have) else "head"
            server = self._add(role)
            if server is None:
                break
            have.append(server)
        if not have:
            raise RunError("no account took a single server; see the reasons above.")

    def servers(self) -> list[Server]:
        """The run's servers at all accounts; those that it finds made are billed from then on."""
        before = self.listed
        every = everywhere(self.accounts, self.labels)
        with self._lock:
            found = [server for server in every if server.name not in self._deleted]
            for server in found:
                price = self.plan.prices.get((server.type, server.location), 0)
                self._bills.setdefault(server.name, Bill(price, server.created))
            made = {name: each for name, each in self.listed.items() if name not in before}
            self.listed = made | {server.name: server for server in found}
        return found

    def mark(self) -> None:
        """Note at the cloud that somebody works with these servers; see `forsaken`."""
        mark(self.accounts, self.labels, self.clock())

    def remove(self, server: Server, *, pause: float = 0.5, patience: float = _LEAVES) -> None:
        """Delete one server, and wait until there is room for another one."""
        for account in self.accounts:
            if self._has(account, server):
                account.delete(server)
                deadline = time.monotonic() + patience
                while self._has(account, server) and time.monotonic() < deadline:
                    time.sleep(pause)
        with self._lock:
            self._deleted.add(server.name)
            self.listed = {name: each for name, each in self.listed.items() if name != server.name}
            if bill := self._bills.get(server.name):
                bill.until = self.clock()

    def cost(self, name: str) -> float:
        """Euros that a server has cost so far."""
        bill = self._bills.get(name)
        return bill.euros(self.clock()) if bill else 0

    def hourly(self) -> float:
        """Euros an hour that all cost now."""
        return sum(bill.hourly for bill in self._bills.copy().values() if bill.until is None)

    def spent(self, *, ahead: float = 0) -> float:
        """Euros that will have been spent in ``ahead`` seconds."""
        return sum(bill.euros(self.clock() + ahead) for bill in self._bills.copy().values())

    def down(self, *, pause: float = 1, late: float = _LATE, patience: float = _PATIENCE) -> None:
        """Delete all that carries the run's label, and ask the clouds whether it is gone.

        Waits for servers whose making was never answered. Raises RunError with what remains.
        """
        started = time.monotonic()
        while True:
            # both before the sweep, which deletes what it finds, and not what is made after it
            waited, unsure = time.monotonic() - started, bool(self._unsure)
            left, trouble = sweep(self.accounts, self.labels)
            self._unsure.difference_update(server.name for server in left)
            if not left and not trouble and (not unsure or waited > late):
                break
            if waited > patience:
                raise RunError(remains(left, trouble, self.run, self._hourly(left)))
            time.sleep(pause)
        with self._lock:
            self.listed = {}
            self._deleted.update(self._bills)
            for bill in self._bills.values():
                bill.until = bill.until or self.clock()

    def _has(self, account: Account, server: Server) -> bool:
        return any(each.id == server.id for each in account.servers(self.labels))

    def _hourly(self, servers: Sequence[Server]) -> float:
        bills = self._bills.copy()
        return sum(bills[each.name].hourly for each in servers if each.name in bills)

    def _add(self, role: str) -> Server | None:
        """Make one server where there is stock and room; None if there is none anywhere."""
        self._made += 1
        name = f"cah-{self.run}-{self._made}-{secrets.token_hex(2)}"
        wish = Wish(name=name, labels={**self.labels, "role": role}, user_data=self.user_data(name))
        dear = list[float]()
        for account, offer in self._options():
            if account.name in self._full:
                continue
            if self._dear(offer):
                dear.append(offer.hourly)
                continue
            self._unsure.add(name)  # first: who deletes all then waits for it, or has stopped us
            if self.stop.is_set():
                self._unsure.discard(name)
                raise Stopped("stopped while servers were being made.")
            try:
                server = account.create(offer, wish)
            except Denied as denied:
                self._note(account, offer, denied)
                if denied.why is not Denial.AWAY:  # said no: it will not come later
                    self._unsure.discard(name)
                if denied.why in (Denial.TOKEN, Denial.OTHER, Denial.AWAY):
                    raise
                continue
            self._unsure.discard(name)
            with self._lock:
                self._bills[name] = Bill(offer.hourly, self.clock())
                self.listed = {**self.listed, name: server}
            self.tell(
                f"{name}: {server.type or offer.type} at {offer.location}, {account.name}, "
                f"EUR {offer.hourly:.4f} an hour"
            )
            return server
        if dear:
            self.tell(
                f"what is still offered costs EUR {min(dear):.4f} an hour or more a server: more "
                f"than {_DEAR} times the plan's price, or than max_cost leaves; none is made."
            )
        return None

    def _dear(self, offer: Offer) -> bool:
        """Whether a server costs more than was agreed to."""
        agreed = _DEAR * max(each.hourly for each in self.plan.first())
        ceiling = self.plan.limits.max_cost or math.inf
        return offer.hourly > agreed or self.spent() + offer.hourly > ceiling + _ROUNDED

    def _options(self) -> Iterator[tuple[Account, Offer]]:
        """Where the next server may be made, the best first: accounts and places take turns."""
        for account in self.accounts:
            offers = [
                offer
                for offer in self.plan.choices[account.name]
                if (account.name, offer.type, offer.location) not in self._gone
            ]
            places = list(dict.fromkeys(offer.location for offer in offers))
            turn = (self._made - 1) % len(places) if places else 0
            for place in places[turn:] + places[:turn]:
                yield from ((account, offer) for offer in offers if offer.location == place)

    def _note(self, account: Account, offer: Offer, denied: Denied) -> None:
        if denied.why is Denial.LIMIT:
            self._full.add(account.name)
            self.tell(str(denied))
        elif denied.why is Denial.STOCK:
            self._gone.add((account.name, offer.type, offer.location))
            self.tell(f"{offer.type} at {offer.location}: {denied}")


@contextmanager
def fleet(
    made: Fleet, *, public_key: str, pause: float = 1, late: float = _LATE
) -> Iterator[Fleet]:
    """Servers while the block runs; whatever ends it, they are deleted and seen to be gone."""
    try:
        made.prepare(public_key)
        made.fill()
        yield made
    finally:
        with undisturbed():
            made.down(pause=pause, late=late)


def sweep(accounts: Sequence[Account], labels: Mapping[str, str]) -> tuple[list[Server], list[str]]:
    """Ask every account to delete what carries the labels: what was there, what went wrong."""
    left, trouble = dict[int, Server](), list[str]()
    for account in accounts:
        try:
            found = account.servers(labels)
            left |= {server.id: server for server in found}
            for server in found:
                try:
                    account.delete(server)
                except Denied as denied:  # those after it may go
                    trouble.append(str(denied))
                    if denied.why is Denial.AWAY:  # to all, or to this one?
                        account.servers(labels)
            if not found:
                account.clean(labels)
        except Denied as denied:
            trouble.append(str(denied))
    return list(left.values()), trouble


def forsaken(accounts: Sequence[Account], *, but: str = "", now: float | None = None) -> list[str]:
    """Sentences on servers of runs that are over, that of the run ``but`` excepted."""
    now, runs = now or time.time(), defaultdict[str, list[Server]](list)
    for server in everywhere(accounts, dict([PROJECT])):
        runs[server.labels.get("run", "")].append(server)
    over = {
        run: servers
        for run, servers in runs.items()
        if run != but and max(map(worked, servers)) < now - _OVER
    }
    prices = (
        {kind: euro for each in accounts for kind, euro in each.prices().items()} if over else {}
    )
    return [
        f"{len(servers)} servers of run {run} are still there, and nobody works with them: EUR "
        f"{sum(prices.get((s.type, s.location), 0) for s in servers):.4f} an hour, until you type "
        f"`cah swarm down --run {run}`."
        for run, servers in over.items()
    ]


def remains(left: Sequence[Server], trouble: Sequence[str], run: str, hourly: float) -> str:
    """The last line of a run whose servers could not be deleted; ``run`` "": of all runs."""
    names = ", ".join(server.name for server in left) or "perhaps some"
    why = f" ({trouble[0].rstrip('.')})" if trouble else ""
    cost = f" EUR {hourly:.4f} an hour" if hourly else " money"
    whose, which = (f" of run {run}", f"--run {run}") if run else ("", "--all-runs")
    return (
        f"servers{whose} are NOT deleted{why}: {names}; they cost{cost} "
        f"until you type `cah swarm down {which}`."
    )
