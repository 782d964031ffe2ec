"""Create, count and delete the servers of one run over several accounts, and verify the deletion.

`planner` decides what to create. It does not know what runs on a server. Whatever happens inside
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
from functools import partial

from cahlib.core.errors import RunError, Stopped
from cahlib.core.retry import wait_until
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

#: The error of a run whose servers somebody else has deleted.
TAKEN_DOWN = (
    "the run's servers and its key were deleted, as `cah swarm down` does; finished work is kept, "
    "so run the same command again to continue."
)

#: How many times the planned price a server, and each of its cores, may cost.
_MAX_PRICE_FACTOR = 3

#: Rounding error of a sum of money.
_EPSILON = 1e-9

#: Seconds in which an unanswered request may still create a server.
_LATE_ANSWER = 10.0

#: Seconds for which deletion is retried before what remains is reported.
_DELETE_TIMEOUT = 120.0

#: Seconds in which a deleted server disappears from its account's list.
_DELISTING_TIMEOUT = 30.0


@dataclass(slots=True)
class Provisioner:
    """Creates and deletes the servers of one run."""

    run: str
    plan: ServerPlan
    user_data: Callable[[str], str]  #: of a server, by its name
    report: Callable[[str], None]
    billing: Billing = field(default_factory=Billing)
    clock: Callable[[], float] = time.time
    stop: threading.Event = field(
        default_factory=threading.Event
    )  #: set: no more servers are wanted
    image: str = "debian-12"  #: the cloud's image for servers
    listed: Mapping[str, Server] = field(default_factory=dict)  #: by name, as last listed
    _accounts: dict[str, Account] = field(
        default_factory=dict
    )  #: those that accept orders at the moment
    _refused: set[AccountOffer] = field(default_factory=set)  #: not available at the moment
    _unanswered: set[str] = field(default_factory=set)  #: names requested without an answer
    _created: int = 0
    _deleted: set[str] = field(default_factory=set)  #: names, which are not reused
    #: for `listed` and `_deleted`, used by several threads; never held during requests
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.billing.currency = self.plan.currency

    @property
    def accounts(self) -> Sequence[Account]:
        """Return the accounts in which the run may have servers."""
        return self.plan.accounts

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of all servers of the run."""
        return {PROJECT_LABEL[0]: PROJECT_LABEL[1], "run": self.run}

    def prepare(self, public_key: str) -> None:
        """Create keys and firewalls in every account."""
        for account in self.accounts:
            account.prepare(self.labels, public_key)

    def allow_networks(self, networks: Sequence[str]) -> None:
        """Open Dask's ports on the servers to these networks only."""
        for account in self.accounts:
            account.allow_networks(self.labels, networks)

    def fill(self) -> None:
        """Create servers until there are as many as planned, or no account accepts more.

        Raise RunError if there is not even one, or if no more are wanted: somebody else may have
        deleted the others.
        """
        if self._created and self.is_taken_down():
            raise Stopped(TAKEN_DOWN)
        self._accounts = {each.name: each for each in self.accounts}
        self._refused.clear()  # servers may have been deleted since, also of others
        existing = self.servers()
        while todo := self._offers_to_order(existing):
            for account, offer in todo:
                if self._is_too_expensive(offer):
                    break
                role = "node" if any(s.labels.get("role") == "head" for s in existing) else "head"
                server = self._create(account, offer, role)
                if server is None:
                    break
                existing.append(server)
        if not existing:
            raise RunError("no account accepted an order; see the reasons above.")
        self._report_shortfall(existing)

    def servers(self) -> list[Server]:
        """Return the run's servers at all accounts; newly found ones are billed from now on."""
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
        """Return whether somebody deleted the run's servers and its key."""
        if list_servers(self.accounts, self.labels):
            return False
        return not any(each.is_prepared(self.labels) for each in self.accounts)

    def set_head(self, server: Server) -> None:
        """Make a server the head; the previous head becomes a node."""
        for each in self.servers():
            if each.labels.get("role") == "head" and each.name != server.name:
                self._label(each, "node")
        self._label(server, "head")
        self.servers()

    def heartbeat(self) -> None:
        """Note at the cloud that somebody works with these servers; see `runs.orphaned_runs`."""
        send_heartbeat(self.accounts, self.labels, self.clock())

    def remove(
        self, server: Server, *, pause: float = 0.5, timeout: float = _DELISTING_TIMEOUT
    ) -> None:
        """Delete one server, and wait until its account has room for another one."""
        for account in self.accounts:
            if self._has(account, server):
                account.delete(server)
                is_gone = partial(self._is_gone, account, server)
                wait_until(is_gone, timeout=timeout, pause=pause)
        with self._lock:
            self._deleted.add(server.name)
            self.listed = {name: each for name, each in self.listed.items() if name != server.name}
            self.billing.close([server.name], self.clock())

    def spent(self, *, ahead: float = 0) -> float:
        """Return the costs in ``ahead`` seconds, including earlier launches."""
        return self.billing.spent(self.clock() + ahead)

    def down(
        self, *, pause: float = 1, late: float = _LATE_ANSWER, timeout: float = _DELETE_TIMEOUT
    ) -> None:
        """Delete everything with the run's labels, until the clouds list nothing more.

        Wait for servers whose creation was not answered. Raise RunError with what remains.
        """
        started = time.monotonic()
        if self.listed:
            self.report(f"deleting {plural(len(self.listed), 'server')} …")
        left: list[Server] = []
        trouble: list[str] = []

        def are_gone() -> bool:
            nonlocal left, trouble
            # both before the deletion, which misses servers created after it
            waited, unanswered = time.monotonic() - started, bool(self._unanswered)
            left, trouble = delete_labelled(self.accounts, self.labels)
            self._unanswered.difference_update(server.name for server in left)
            with self._lock:
                self.listed = {each.name: each for each in left}
            return not left and not trouble and (not unanswered or waited > late)

        # a last round, so that what the one before it deleted is not named
        if not wait_until(are_gone, timeout=timeout, pause=pause) and not are_gone():
            raise RunError(leftover_message(left, trouble, self.run, self._cost(left)))
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
        return not self._is_gone(account, server)

    def _is_gone(self, account: Account, server: Server) -> bool:
        return all(each.id != server.id for each in account.servers(self.labels))

    def leftovers_so_far(self) -> str:
        """Return what would be left at the cloud if the deletion stopped now."""
        left = list(self.listed.values())
        return (
            f"{plural(len(left), 'server')} {verb(len(left))} still being deleted, and would "
            f"otherwise keep costing {self._cost(left)}; waiting for them."
        )

    def _cost(self, servers: Sequence[Server]) -> str:
        billing = self.billing.running()
        hourly = sum(billing[each.name].hourly for each in servers if each.name in billing)
        return f"{self.plan.currency} {hourly:.4f} an hour" if hourly else "money"

    def _offers_to_order(self, existing: Sequence[Server]) -> list[AccountOffer]:
        """Return what to order now beside what we have, of what is available and affordable."""
        known = self.plan.all_offers()
        offers = [known.get((each.type, each.location), _UNKNOWN_OFFER) for each in existing]
        options = [
            each
            for each in self.plan.options()
            if each[0] in self._accounts and each not in self._refused
        ]
        fit = [each for each in options if not self._is_too_expensive(each[1])]
        if options and not fit and self.plan.offers_to_order(options, offers, math.inf):
            self.report(
                f"what is still offered, from {self.plan.currency} "
                f"{min(offer.hourly for _, offer in options):.4f} an hour, is too expensive: a "
                f"server or a core costs over {_MAX_PRICE_FACTOR} times what was planned, or more "
                "than max_cost leaves; none is created."
            )
        ceiling = self.plan.limits.max_cost or math.inf
        return self.plan.offers_to_order(fit, offers, ceiling - self.spent())

    def _is_too_expensive(self, offer: Offer) -> bool:
        """Return whether a server costs more than was agreed to."""
        first, ceiling = self.plan.first, self.plan.limits.max_cost or math.inf
        return (
            offer.hourly > _MAX_PRICE_FACTOR * max(each.hourly for each in first)
            or core_price(offer) > _MAX_PRICE_FACTOR * max(map(core_price, first))
            or self.spent() + offer.hourly > ceiling + _EPSILON
        )

    def _create(self, account: str, offer: Offer, role: str) -> Server | None:
        """Create one server; return None if it is not available, which is remembered."""
        name = f"cah-{self.run}-{self._created + 1}-{secrets.token_hex(2)}"
        spec = ServerSpec(
            name=name,
            labels={**self.labels, "role": role},
            user_data=self.user_data(name),
            image=self.image,
        )
        self._unanswered.add(name)  # first, so that `down` waits for it, or has stopped us
        if self.stop.is_set():
            self._unanswered.discard(name)
            raise Stopped(
                "stopped while servers were being created; run the same command again to continue."
            )
        try:
            server = self._accounts[account].create(offer, spec)
        except Denied as denied:
            if denied.reason is not DenialReason.AWAY:  # denied: it will not be created later
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
        """Stop asking for what was denied; raise it if it was the last account's token."""
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

    def _report_shortfall(self, existing: Sequence[Server]) -> None:
        """Report if there are fewer servers than planned."""
        limits, known = self.plan.limits, self.plan.all_offers()
        what, wanted, got = "server", limits.nodes, len(existing)
        if limits.cores:
            offers = (known.get((each.type, each.location), _UNKNOWN_OFFER) for each in existing)
            what, wanted, got = "core", limits.cores, sum(map(useful_cores, offers))
        if got < wanted:
            self.report(f"continuing with {got} of {plural(wanted, what)}.")


#: The offer of a type that is not offered any more.
_UNKNOWN_OFFER = Offer(type="", location="", cores=0, memory=0, architecture="", hourly=0)


@contextmanager
def provisioned(
    made: Provisioner, *, public_key: str, pause: float = 1, late: float = _LATE_ANSWER
) -> Iterator[Provisioner]:
    """Provide servers while the block runs; afterwards they are verifiably deleted."""
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
    """Delete everything with the labels; return what existed, and errors as sentences."""
    left, trouble = dict[int, Server](), list[str]()
    for account in accounts:
        try:
            found = account.servers(labels)
            left |= {server.id: server for server in found}
            for server in found:
                try:
                    account.delete(server)
                except Denied as denied:  # the next ones may work
                    trouble.append(str(denied))
                    if (
                        denied.reason is DenialReason.AWAY
                    ):  # raises if the cloud does not answer at all
                        account.servers(labels)
            if not found:
                account.clean(labels)
        except Denied as denied:
            trouble.append(str(denied))
    return list(left.values()), trouble


def leftover_message(
    left: Sequence[Server], trouble: Sequence[str], run: str, cost: str = "money"
) -> str:
    """Return the error for servers that could not be deleted; ``run`` "" means all runs."""
    names = ", ".join(server.name for server in left) or "perhaps some"
    why = f" ({trouble[0].rstrip('.')})" if trouble else ""
    whose, which = (f" of run {run}", f"--run {run}") if run else ("", "--all-runs")
    return (
        f"servers{whose} are NOT deleted{why}: {names}; they cost {cost} "
        f"until you type `cah swarm down {which}`."
    )
