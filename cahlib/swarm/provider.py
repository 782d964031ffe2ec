"""The interface of a cloud: offers, servers by label, and why a request was denied.

It knows no cloud; `hetzner` implements it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cahlib.core.errors import ConfigError, RunError

#: The label of all servers, keys and firewalls of cahlib; nothing without it is ever touched.
PROJECT_LABEL = ("project", "cahlib")

#: The label with the time of a run's last heartbeat: seconds since 1970.
HEARTBEAT_LABEL = "alive"


class DenialReason(Enum):
    """A reason for which a cloud denied a request; it decides what is tried next."""

    STOCK = "not available there at the moment"  #: the next offer
    LIMIT = "the account's limit is reached"  #: the next account
    CORES = "the account's limit of cores is reached"  #: fewer cores may still fit
    TOKEN = "the token was refused"  #: nothing more can be done with this account
    AWAY = "the cloud does not answer"  #: the outcome is unknown: check before asking again
    OTHER = "refused"


class Denied(RunError):
    """A cloud denied a request."""

    def __init__(self, why: DenialReason, text: str) -> None:
        super().__init__(text)
        self.reason = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A type of server in a location, with its price."""

    type: str
    location: str
    cores: int
    memory: float  #: GB
    architecture: str  #: "x86" or "arm"
    hourly: float  #: with IPv4 and tax; a started hour is billed in full
    currency: str = "EUR"  #: of the account that pays
    dedicated: bool = False  #: whether its cores are dedicated, of which accounts have a limit
    unavailable: str = ""  #: why it cannot be ordered now; "" if it can


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as the cloud lists it."""

    id: int
    name: str
    address: str  #: IPv4, "" while it has none
    type: str
    location: str
    status: str  #: as the cloud calls it: "initializing", "running", "off" …
    labels: Mapping[str, str]
    created: float  #: seconds since 1970


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A server to create."""

    name: str  #: unique in the account, so that asking twice creates one
    labels: Mapping[str, str]
    user_data: str  #: for cloud-init, at most 32 KiB; any process on the server can read it
    image: str


class Account(Protocol):
    """One account at a cloud; every method raises Denied if the cloud denies the request."""

    name: str  #: shown to people; never the token

    def check(self) -> None:
        """Check that the account answers and may create servers; change nothing."""

    def offers(self) -> Sequence[Offer]:
        """Return every server that has a price, including those that cannot be ordered now."""

    def is_prepared(self, labels: Mapping[str, str]) -> bool:
        """Return whether what `prepare` created still exists."""

    def prepare(self, labels: Mapping[str, str], public_key: str) -> None:
        """Create the key and firewall that a run's servers share, unless they exist."""

    def allow_networks(self, labels: Mapping[str, str], networks: Sequence[str]) -> None:
        """Open Dask's ports to these networks only, on all servers of a run."""

    def create(self, offer: Offer, spec: ServerSpec) -> Server:
        """Create a server, or return an existing one with this name and these labels."""

    def servers(self, labels: Mapping[str, str]) -> list[Server]:
        """Return all servers with these labels."""

    def set_labels(self, server: Server, labels: Mapping[str, str]) -> None:
        """Add labels to a server, or change them."""

    def delete(self, server: Server) -> None:
        """Delete a server, if it still exists."""

    def clean(self, labels: Mapping[str, str]) -> None:
        """Delete what `prepare` created."""


def usable_accounts(accounts: Sequence[Account]) -> tuple[list[Account], list[str]]:
    """Return the accounts whose tokens are valid, and a sentence about each of the others.

    Raise ConfigError if none is valid, Denied if a cloud does not answer.
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
    return good, [f"{denied} It is skipped." for denied in bad]


def offers_by_type(accounts: Sequence[Account]) -> dict[tuple[str, str], Offer]:
    """Return all offers by type and location, including sold-out ones."""
    return {(o.type, o.location): o for account in accounts for o in account.offers()}


def list_servers(accounts: Sequence[Account], labels: Mapping[str, str]) -> list[Server]:
    """Return the servers with these labels, each once: two tokens may be of one project."""
    listed = (server for account in accounts for server in account.servers(labels))
    return list({(server.id, server.name): server for server in listed}.values())


def send_heartbeat(accounts: Sequence[Account], labels: Mapping[str, str], now: float) -> None:
    """Record at each cloud, on one server, that a run's servers are in use."""
    for account in accounts:
        for server in account.servers(labels)[:1]:
            account.set_labels(server, {HEARTBEAT_LABEL: str(int(now))})


#: Seconds without a heartbeat after which servers are not in use any more.
HEARTBEAT_TIMEOUT = 300.0


def is_in_use(server: Server, now: float) -> bool:
    """Return whether a server has a recent heartbeat."""
    alive = server.labels.get(HEARTBEAT_LABEL, "")
    return alive.isdecimal() and float(alive) > now - HEARTBEAT_TIMEOUT


def last_used(server: Server) -> float:
    """Return when a server was last used, by its labels."""
    alive = server.labels.get(HEARTBEAT_LABEL, "")
    return max(server.created, float(alive) if alive.isdecimal() else 0)
