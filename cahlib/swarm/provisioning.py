"""Servers of one run over several accounts: made, counted, deleted, and seen to be gone.

What is made, `planner` says. It does not know what runs on a server. Whatever happens inside
`provisioned`, nothing of the run is left at the clouds after it, or the error says what is.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cahlib.core.errors import RunError, Stopped
from cahlib.core.signals import defer_signals
from cahlib.core.wording import plural, verb
from cahlib.swarm.billing import Billing
from cahlib.swarm.planner import AccountOffer, ServerPlan, core_price, useful_cores
from cahlib.swarm.provider import (
    PROJECT_LABEL,
    Account,
    DenialReason,
    Denied,
    Offer,
    Server,
    ServerSpec,
    list_servers,
    send_heartbeat,
)

#: What a run is told whose servers somebody else has deleted.
TAKEN_DOWN = (
    "the run's servers and its key were deleted, as `cah swarm down` does; what is finished is "
    "kept, and the same command goes on from here."
)

#: How many times dearer than planned a server, and each of its cores, may be.
_MAX_PRICE_FACTOR = 3

#: Money that a sum may be off.
_EPSILON = 1e-9

#: Seconds in which a request that was never answered may still make a server.
_LATE_ANSWER = 10.0

#: Seconds for which deleting is tried again before what remains is reported.
_DELETE_TIMEOUT = 120.0

#: Seconds in which a deleted server leaves its account's list.
_DELISTING_TIMEOUT = 30.0


@dataclass(slots=True)
class Provisioner:
    """The servers of one run."""

    run: str
    plan: ServerPlan
    user_data: Callable[[str], str]  #: of a server, by its name
    report: Callable[[str], None]
    billing: Billing = field(default_factory=Billing)
    clock: Callable[[], float] = time.time
    stop: threading.Event = field(default_factory=threading.Event)  #: set: no more are wanted
    image: str = "debian-12"  #: of the cloud's, that servers are made of
    listed: Mapping[str, Server] = field(default_factory=dict)  #: by name, as last heard
    _accounts: dict[str, Account] = field(default_factory=dict)  #: those that take servers just now
    _refused: set[AccountOffer] = field(default_factory=set)  #: not to be had just now
    _unanswered: set[str] = field(default_factory=set)  #: asked for, without an answer
    _created: int = 0
    _deleted: set[str] = field(default_factory=set)  #: names: none of them comes again
    #: of `listed` and what is deleted: by several threads; never held while a cloud is asked
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.billing.currency = self.plan.currency

    @property
    def accounts(self) -> Sequence[Account]:
        """Where the run may have servers."""
        return self.plan.accounts

    @property
    def labels(self) -> dict[str, str]:
        """What every server of the run carries."""
        return {PROJECT_LABEL[0]: PROJECT_LABEL[1], "run": self.run}

    def prepare(self, public_key: str) -> None:
        """Make keys and firewalls in every account."""
        for account in self.accounts:
            account.prepare(self.labels, public_key)

    def allow_networks(self, networks: Sequence[str]) -> None:
        """Open the servers' ports of Dask to these networks alone."""
        for account in self.accounts:
            account.allow_networks(self.labels, networks)

    def fill(self) -> None:
        """Make servers until there are as many as planned, or no account takes more.

        Raises RunError if not even one came up, or if no more are wanted: those that there were
        may have been taken down by somebody else.
        """
        if self._created and self.is_taken_down():
            raise Stopped(TAKEN_DOWN)
        self._accounts = {each.name: each for each in self.accounts}
        self._refused.clear()  # servers may be gone since, and others' too
        have = self.servers()
        while todo := self._offers_to_order(have):
            for account, offer in todo:
                if self._is_too_expensive(offer):
                    break
                role = "node" if any(s.labels.get("role") == "head" for s in have) else "head"
                server = self._create(account, offer, role)
                if server is None:
                    break
                have.append(server)
        if not have:
            raise RunError("no account took a single server; see the reasons above.")
        self._report_shortfall(have)

    def servers(self) -> list[Server]:
        """The run's servers at all accounts; those that it finds made are billed from then on."""
        before, running = self.listed, set(self.billing.running())
        every, known = list_servers(self.accounts, self.labels), self.plan.all_offers()
        with self._lock:
            found = [server for server in every if server.name not in self._deleted]
            for server in found:
                offer = known.get((server.type, server.location))
                self.billing.open(server.name, offer.hourly if offer else 0, server.created)
            self.billing.close(running - {server.name for server in found}, self.clock())
            made = {name: each for name, each in self.listed.items() if name not in before}
            self.listed = made | {server.name: server for server in found}
        return found

    def is_taken_down(self) -> bool:
        """Return whether somebody deleted the run's servers together with its key."""
        if list_servers(self.accounts, self.labels):
            return False
        return not any(each.is_prepared(self.labels) for each in self.accounts)

    def set_head(self, server: Server) -> None:
        """Make a server the head; the one that was becomes a node."""
        for each in self.servers():
            if each.labels.get("role") == "head" and each.name != server.name:
                self._label(each, "node")
        self._label(server, "head")
        self.servers()

    def heartbeat(self) -> None:
        """Note at the cloud that somebody works with these servers; see `runs.orphaned_runs`."""
        send_heartbeat(self.accounts, self.labels, self.clock())

    def remove(
        self, server: Server, *, pause: float = 0.5, patience: float = _DELISTING_TIMEOUT
    ) -> None:
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
            self.billing.close([server.name], self.clock())

    def spent(self, *, ahead: float = 0) -> float:
        """Return what the run will have cost in ``ahead`` seconds, earlier launches included."""
        return self.billing.spent(self.clock() + ahead)

    def down(
        self, *, pause: float = 1, late: float = _LATE_ANSWER, patience: float = _DELETE_TIMEOUT
    ) -> None:
        """Delete all that carries the run's label, and ask the clouds whether it is gone.

        Waits for servers whose making was never answered. Raises RunError with what remains.
        """
        started = time.monotonic()
        if self.listed:
            self.report(f"deleting {plural(len(self.listed), 'server')} …")
        while True:
            # both before the sweep, which deletes what it finds, and not what is made after it
            waited, unanswered = time.monotonic() - started, bool(self._unanswered)
            left, trouble = delete_labelled(self.accounts, self.labels)
            self._unanswered.difference_update(server.name for server in left)
            with self._lock:
                self.listed = {each.name: each for each in left}
            if not left and not trouble and (not unanswered or waited > late):
                break
            if waited > patience:
                raise RunError(leftover_message(left, trouble, self.run, self._cost(left)))
            time.sleep(pause)
        with self._lock:
            self.listed = {}
            gone = list(self.billing.running())
            self._deleted.update(gone)
            self.billing.close(gone, self.clock())

    def _label(self, server: Server, role: str) -> None:
        for account in self.accounts:
            if self._has(account, server):
                account.set_labels(server, {"role": role})

    def _has(self, account: Account, server: Server) -> bool:
        return any(each.id == server.id for each in account.servers(self.labels))

    def leftovers_so_far(self) -> str:
        """Return what would stay at the cloud if the deletion ended now."""
        there = list(self.listed.values())
        return (
            f"{plural(len(there), 'server')} {verb(len(there))} still being deleted, and would be "
            "left at "
            f"{self._cost(there)}; this waits for them."
        )

    def _cost(self, servers: Sequence[Server]) -> str:
        billing = self.billing.running()
        hourly = sum(billing[each.name].hourly for each in servers if each.name in billing)
        return f"{self.plan.currency} {hourly:.4f} an hour" if hourly else "money"

    def _offers_to_order(self, have: Sequence[Server]) -> list[AccountOffer]:
        """What to order now beside what we have, of what is to be had and not too dear."""
        known = self.plan.all_offers()
        there = [known.get((each.type, each.location), _UNKNOWN_OFFER) for each in have]
        options = [
            each
            for each in self.plan.options()
            if each[0] in self._accounts and each not in self._refused
        ]
        fit = [each for each in options if not self._is_too_expensive(each[1])]
        if options and not fit and self.plan.offers_to_order(options, there, math.inf):
            self.report(
                f"what is still offered, from {self.plan.currency} "
                f"{min(offer.hourly for _, offer in options):.4f} an hour, is too expensive: a "
                f"server or a core costs over {_MAX_PRICE_FACTOR} times what was planned, or more "
                "than max_cost leaves; none is created."
            )
        ceiling = self.plan.limits.max_cost or math.inf
        return self.plan.offers_to_order(fit, there, ceiling - self.spent())

    def _is_too_expensive(self, offer: Offer) -> bool:
        """Return whether a server costs more than was agreed to."""
        first, ceiling = self.plan.first, self.plan.limits.max_cost or math.inf
        return (
            offer.hourly > _MAX_PRICE_FACTOR * max(each.hourly for each in first)
            or core_price(offer) > _MAX_PRICE_FACTOR * max(map(core_price, first))
            or self.spent() + offer.hourly > ceiling + _EPSILON
        )

    def _create(self, account: str, offer: Offer, role: str) -> Server | None:
        """Make one server; None if it is not to be had, and noted so."""
        name = f"cah-{self.run}-{self._created + 1}-{secrets.token_hex(2)}"
        spec = ServerSpec(
            name=name,
            labels={**self.labels, "role": role},
            user_data=self.user_data(name),
            image=self.image,
        )
        self._unanswered.add(name)  # first: who deletes all then waits for it, or has stopped us
        if self.stop.is_set():
            self._unanswered.discard(name)
            raise Stopped(
                "stopped while servers were being created; run the same command again to continue."
            )
        try:
            server = self._accounts[account].create(offer, spec)
        except Denied as denied:
            if denied.reason is not DenialReason.AWAY:  # said no: it will not come later
                self._unanswered.discard(name)
            if denied.reason in (DenialReason.OTHER, DenialReason.AWAY):
                raise
            self._handle_denial(account, offer, denied)
            return None
        self._unanswered.discard(name)
        self._created += 1
        with self._lock:
            self.billing.open(name, offer.hourly, self.clock())
            self.listed = {**self.listed, name: server}
        self.report(
            f"{name}: {server.type or offer.type} at {offer.location}, {account}, "
            f"{offer.currency} {offer.hourly:.4f} an hour"
        )
        return server

    def _handle_denial(self, account: str, offer: Offer, denied: Denied) -> None:
        """Ask no more for what was refused. Raises it if it was the last account's token."""
        place = (
            "" if denied.reason is not DenialReason.STOCK else f"{offer.type} at {offer.location}: "
        )
        self.report(f"{place}{denied}")
        if denied.reason is DenialReason.STOCK:
            self._refused.add((account, offer))
        elif denied.reason is DenialReason.CORES:
            self._refused |= {
                (account, each)
                for each in self.plan.offers[account]
                if each.cores >= offer.cores and each.dedicated == offer.dedicated
            }
        else:
            del self._accounts[account]
            if denied.reason is DenialReason.TOKEN and not self._accounts:
                raise denied

    def _report_shortfall(self, have: Sequence[Server]) -> None:
        """Say so if there are fewer servers than planned."""
        limits, known = self.plan.limits, self.plan.all_offers()
        what, wanted, got = "server", limits.nodes, len(have)
        if limits.cores:
            there = (known.get((each.type, each.location), _UNKNOWN_OFFER) for each in have)
            what, wanted, got = "core", limits.cores, sum(map(useful_cores, there))
        if got < wanted:
            self.report(f"going on with {got} of {plural(wanted, what)}.")


#: A server of a type that nobody tells of any more.
_UNKNOWN_OFFER = Offer(type="", location="", cores=0, memory=0, architecture="", hourly=0)


@contextmanager
def provisioned(
    made: Provisioner, *, public_key: str, pause: float = 1, late: float = _LATE_ANSWER
) -> Iterator[Provisioner]:
    """Servers while the block runs; whatever ends it, they are deleted and seen to be gone."""
    try:
        made.prepare(public_key)
        made.fill()
        yield made
    finally:
        with defer_signals(made.leftovers_so_far):
            made.down(pause=pause, late=late)


def delete_labelled(
    accounts: Sequence[Account], labels: Mapping[str, str]
) -> tuple[list[Server], list[str]]:
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
                    if denied.reason is DenialReason.AWAY:  # to all, or to this one?
                        account.servers(labels)
            if not found:
                account.clean(labels)
        except Denied as denied:
            trouble.append(str(denied))
    return list(left.values()), trouble


def leftover_message(
    left: Sequence[Server], trouble: Sequence[str], run: str, cost: str = "money"
) -> str:
    """The last line of a run whose servers could not be deleted; ``run`` "": of all runs."""
    names = ", ".join(server.name for server in left) or "perhaps some"
    why = f" ({trouble[0].rstrip('.')})" if trouble else ""
    whose, which = (f" of run {run}", f"--run {run}") if run else ("", "--all-runs")
    return (
        f"servers{whose} are NOT deleted{why}: {names}; they cost {cost} "
        f"until you type `cah swarm down {which}`."
    )
