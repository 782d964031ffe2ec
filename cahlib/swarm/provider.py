"""What the swarm asks of a cloud: offers, servers by label, and why something was refused.

It knows no cloud; `hetzner` implements it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cahlib.core.errors import ConfigError, RunError

#: Every server, key and firewall of ours carries this label; nothing without it is ever touched.
PROJECT_LABEL = ("project", "cahlib")

#: The label that says when somebody worked with a run's servers: seconds since 1970.
HEARTBEAT_LABEL = "alive"


class DenialReason(Enum):
    """Why a cloud did not do what was asked: decides what is tried next."""

    STOCK = "not available there at the moment"  #: the next offer
    LIMIT = "the account's limit is reached"  #: the next account
    CORES = "the account's limit of cores is reached"  #: fewer cores may still fit
    TOKEN = "the token was refused"  #: nothing more can be done with this account
    AWAY = "the cloud does not answer"  #: the outcome is unknown: look before asking again
    OTHER = "refused"


class Denied(RunError):
    """A cloud did not do what was asked."""

    def __init__(self, why: DenialReason, text: str) -> None:
        super().__init__(text)
        self.reason = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A server at a place for a price."""

    type: str
    location: str
    cores: int
    memory: float  #: GB
    architecture: str  #: "x86" or "arm"
    hourly: float  #: with IPv4 and tax; a started hour counts whole
    currency: str = "EUR"  #: of the account that pays
    dedicated: bool = False  #: whether its cores are its own, of which accounts have a limit
    unavailable: str = ""  #: why it cannot be ordered now, "" if it can


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as the cloud lists it."""

    id: int
    name: str
    address: str  #: IPv4, "" while it has none
    type: str
    location: str
    status: str  #: the cloud's word: "initializing", "running", "off" …
    labels: Mapping[str, str]
    created: float  #: seconds since 1970


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A server to be made."""

    name: str  #: unique in the account, so that asking twice makes one
    labels: Mapping[str, str]
    user_data: str  #: for cloud-init, at most 32 KiB; any process on the server can read it
    image: str


class Account(Protocol):
    """One account at a cloud; every method raises Denied when the cloud says no."""

    name: str  #: for people; never the token

    def check(self) -> None:
        """Ask whether the account answers and lets us make servers; changes nothing."""

    def offers(self) -> Sequence[Offer]:
        """Return every server that has a price, also those that cannot be ordered now."""

    def is_prepared(self, labels: Mapping[str, str]) -> bool:
        """Return whether what `prepare` made is still there."""

    def prepare(self, labels: Mapping[str, str], public_key: str) -> None:
        """Make what servers of a run share, its key and firewall; those already there are kept."""

    def allow_networks(self, labels: Mapping[str, str], networks: Sequence[str]) -> None:
        """Open the ports of Dask to these networks alone, on all servers of a run."""

    def create(self, offer: Offer, spec: ServerSpec) -> Server:
        """Make a server, or take the one of this name and these labels that is there already."""

    def servers(self, labels: Mapping[str, str]) -> list[Server]:
        """All servers that carry these labels."""

    def set_labels(self, server: Server, labels: Mapping[str, str]) -> None:
        """Give a server these labels beside those that it has."""

    def delete(self, server: Server) -> None:
        """Delete a server; one that is gone already is fine."""

    def clean(self, labels: Mapping[str, str]) -> None:
        """Delete what `prepare` made."""


def usable_accounts(accounts: Sequence[Account]) -> tuple[list[Account], list[str]]:
    """Return the accounts whose tokens are good, and a sentence on each of the others.

    Raises ConfigError if none is good, Denied if a cloud does not answer.
    """
    good, bad = list[Account](), list[Denied]()
    for account in accounts:
        try:
            account.check()
            good.append(account)
        except Denied as denied:
            if denied.reason is not DenialReason.TOKEN:
                raise
            bad.append(denied)
    if not good and bad:
        raise ConfigError(str(bad[0])) from bad[0]
    return good, [f"{denied} It is left out." for denied in bad]


def offers_by_type(accounts: Sequence[Account]) -> dict[tuple[str, str], Offer]:
    """Return what is offered by type and location, also what is sold out."""
    return {(o.type, o.location): o for account in accounts for o in account.offers()}


def list_servers(accounts: Sequence[Account], labels: Mapping[str, str]) -> list[Server]:
    """Return the servers that carry these labels, each once: two tokens may be of one project."""
    listed = (server for account in accounts for server in account.servers(labels))
    return list({(server.id, server.name): server for server in listed}.values())


def send_heartbeat(accounts: Sequence[Account], labels: Mapping[str, str], now: float) -> None:
    """Note at the clouds, on one server of each, that somebody works with those of a run."""
    for account in accounts:
        for server in account.servers(labels)[:1]:
            account.set_labels(server, {HEARTBEAT_LABEL: str(int(now))})


#: Seconds without a mark after which nobody works with servers any more.
HEARTBEAT_TIMEOUT = 300.0


def is_in_use(server: Server, now: float) -> bool:
    """Return whether somebody has marked a server lately; see `send_heartbeat`."""
    alive = server.labels.get(HEARTBEAT_LABEL, "")
    return alive.isdecimal() and float(alive) > now - HEARTBEAT_TIMEOUT


def last_used(server: Server) -> float:
    """When somebody last worked with a server, as far as it tells."""
    alive = server.labels.get(HEARTBEAT_LABEL, "")
    return max(server.created, float(alive) if alive.isdecimal() else 0)
