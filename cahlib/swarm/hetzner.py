"""Hetzner Cloud through its own client: offers and prices read live, servers found by label.

It does not know what a server is for. Types, prices and locations change several times a year, so
none of them is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hcloud import APIException, Client, HCloudException
from hcloud.firewalls import BoundFirewall, FirewallRule
from hcloud.images import BoundImage
from hcloud.locations import Location
from hcloud.server_types import BoundServerType, ServerType, ServerTypeLocation
from hcloud.servers import BoundServer

from cahlib import __version__
from cahlib.core.errors import ConfigError
from cahlib.core.retry import retry
from cahlib.swarm.provider import DenialReason, Denied, Offer, Server, ServerSpec

_T = TypeVar("_T")

ENDPOINT = "https://api.hetzner.cloud/v1"

#: Ports of Dask's scheduler, and its workers and nannies.
_PORTS = ("8786", "9000-9099")

#: Networks allowed in one firewall rule.
_MAX_NETWORKS = 100

_ANYWHERE = ("0.0.0.0/0", "::/0")

#: Seconds to connect; waiting longer does not help where packets are lost.
_CONNECT_TIMEOUT = 10.0

_DENIALS = {
    "resource_unavailable": DenialReason.STOCK,
    "placement_error": DenialReason.STOCK,
    "invalid_input": DenialReason.OTHER,
    "resource_limit_exceeded": DenialReason.LIMIT,
    "unauthorized": DenialReason.TOKEN,
    "forbidden": DenialReason.TOKEN,
    "token_readonly": DenialReason.TOKEN,
    "service_error": DenialReason.AWAY,
    "server_error": DenialReason.AWAY,
    "rate_limit_exceeded": DenialReason.AWAY,
    "conflict": DenialReason.AWAY,
    "locked": DenialReason.AWAY,
    "timeout": DenialReason.AWAY,
    "bad_gateway": DenialReason.AWAY,
    "maintenance": DenialReason.AWAY,
    "unavailable": DenialReason.AWAY,
}

_RAISE_LIMIT = "; raise the limit in the console under Limits, or add another token"

_ADVICE = {
    DenialReason.LIMIT: _RAISE_LIMIT,
    DenialReason.CORES: _RAISE_LIMIT,
    DenialReason.TOKEN: "; create a token of this project with permission to read and write",
    DenialReason.AWAY: "; try again in a few minutes",
}


class Hetzner:
    """One project at Hetzner Cloud, by its token."""

    def __init__(
        self,
        token: str,
        *,
        name: str,
        endpoint: str = ENDPOINT,
        timeout: float = 30,
        poll: float = 1,
        retry_timeout: float = 60,
    ) -> None:
        self.name = name
        # By default the client has no timeout, and tries six times before it gives up.
        self._client = Client(
            token,
            api_endpoint=endpoint,
            application_name="cahlib",
            application_version=__version__,
            poll_interval=poll,
            timeout=(min(timeout, _CONNECT_TIMEOUT), timeout),
        )
        self._poll, self._retry_timeout = poll, retry_timeout

    def __repr__(self) -> str:
        return f"Hetzner(name={self.name!r})"

    def check(self) -> None:
        """Delete key number 0, which never exists: a read-only token is denied that."""
        request = self._client.request
        try:
            self._retry(lambda: request("DELETE", "/ssh_keys/0"), unless={"not_found"})
        except Denied as denied:
            if denied.reason is not DenialReason.OTHER:  # about the number 0
                raise

    def offers(self) -> Sequence[Offer]:
        """Return every server that has a price, with IPv4 and tax; not all can be ordered now."""
        pricing = self._retry(lambda: self._client.request("GET", "/pricing")["pricing"])
        types = self._retry(self._client.server_types.get_all)
        ipv4, currency = _ipv4_prices(pricing), str(pricing.get("currency", "EUR"))
        return [offer for each in types for offer in _to_offers(each, ipv4, currency)]

    def prepare(self, labels: Mapping[str, str], public_key: str) -> None:
        """Create the run's key and firewall, unless they exist."""
        name = "-".join(labels.values())
        keys = self._client.ssh_keys
        if not self._retry(lambda: keys.get_by_name(name)):
            create_key: Any = keys.create  # its type says that labels are a text
            self._retry(lambda: create_key(name, public_key, dict(labels)), unless=_ALREADY_EXISTS)
        if not self._firewall(name):
            create: Any = self._client.firewalls.create
            self._retry(lambda: create(name, _rules([]), dict(labels)), unless=_ALREADY_EXISTS)

    def allow_networks(self, labels: Mapping[str, str], networks: Sequence[str]) -> None:
        """Open Dask's ports to these networks only, on all servers of a run."""
        if wall := self._firewall("-".join(labels.values())):
            self._retry(lambda: wall.set_rules(_rules(networks)), unless={"not_found"})

    def is_prepared(self, labels: Mapping[str, str]) -> bool:
        """Return whether the run's key still exists; `clean` deletes it."""
        keys = self._client.ssh_keys
        return bool(self._retry(lambda: keys.get_by_name("-".join(labels.values()))))

    def create(self, offer: Offer, spec: ServerSpec) -> Server:
        """Create a server, or return an existing one with this name and these labels.

        Raise Denied; if the cloud did not answer, only after checking whether it acted.
        """
        run = {k: v for k, v in spec.labels.items() if k != "role"}
        shared = "-".join(run.values())

        def make() -> Server:
            try:
                return _to_server(self._asked(lambda: self._create(offer, spec, shared)))
            except Denied as denied:
                if denied.reason in (DenialReason.AWAY, DenialReason.OTHER):
                    for each in self.servers(run):
                        if each.name == spec.name:
                            return each
                raise

        return self._retry(make)  # its name is unique: asking again creates no second one

    def servers(self, labels: Mapping[str, str]) -> list[Server]:
        """Return all servers with these labels."""
        selector = ",".join(f"{key}=={value}" for key, value in labels.items())
        get = self._client.servers.get_all
        return [_to_server(each) for each in self._retry(lambda: get(label_selector=selector))]

    def set_labels(self, server: Server, labels: Mapping[str, str]) -> None:
        """Add labels to a server, or change them."""
        bound, every = BoundServer(self._client.servers, {"id": server.id}), dict(server.labels)
        update: Any = self._client.servers.update  # its type says that labels are a text
        self._retry(lambda: update(bound, labels=every | dict(labels)), unless={"not_found"})

    def delete(self, server: Server) -> None:
        """Delete a server, if it still exists."""
        bound = BoundServer(self._client.servers, {"id": server.id})
        self._retry(lambda: self._client.servers.delete(bound), unless={"not_found"})

    def clean(self, labels: Mapping[str, str]) -> None:
        """Delete the keys and firewalls with these labels; firewalls once no server uses them."""
        selector = ",".join(f"{key}=={value}" for key, value in labels.items())
        gone = {"not_found"}
        for key in self._retry(lambda: self._client.ssh_keys.get_all(label_selector=selector)):
            self._retry(key.delete, unless=gone)
        for wall in self._retry(lambda: self._client.firewalls.get_all(label_selector=selector)):
            self._retry(wall.delete, unless=gone)

    def _create(self, offer: Offer, spec: ServerSpec, shared: str) -> BoundServer:
        keys = [key for key in [self._client.ssh_keys.get_by_name(shared)] if key]
        walls = [wall for wall in [self._client.firewalls.get_by_name(shared)] if wall]
        return self._client.servers.create(
            name=spec.name,
            server_type=ServerType(name=offer.type),
            image=self._image(spec.image, offer.architecture),
            ssh_keys=list(keys),
            firewalls=list(walls),
            location=Location(name=offer.location),
            labels=dict(spec.labels),
            user_data=spec.user_data,
        ).server

    def _image(self, name: str, architecture: str) -> BoundImage:
        image = self._client.images.get_by_name_and_architecture(name, architecture)
        if image is None:
            raise Denied(DenialReason.STOCK, f"Hetzner has no image {name} for {architecture}.")
        return image

    def _firewall(self, name: str) -> BoundFirewall | None:
        return self._retry(lambda: self._client.firewalls.get_by_name(name))

    def _retry(self, ask: Callable[[], _T], *, unless: set[str] = frozenset()) -> _T:  # type: ignore[assignment]
        """Make an idempotent request, up to five times while the cloud does not answer.

        After a minute it is not repeated: there may be servers to delete elsewhere. Return None for
        an error in ``unless``, which means that it was done before.
        """
        return retry(
            lambda: self._asked(ask, unless=unless),
            errors=Denied,
            passing=lambda error: isinstance(error, Denied) and error.reason is DenialReason.AWAY,
            pauses=[self._poll * 2**attempt for attempt in range(4)],
            timeout=self._retry_timeout,
        )

    def _asked(self, ask: Callable[[], _T], *, unless: set[str] = frozenset()) -> _T:  # type: ignore[assignment]
        """Make a request, and translate the client's exceptions."""
        try:
            return ask()
        except APIException as error:
            if str(error.code) in unless:
                return None  # type: ignore[return-value]
            raise self._denied(error) from error
        except (HCloudException, OSError) as error:  # of the network, or a missing CA file
            text = f"{self.name}: Hetzner does not answer ({type(error).__name__})"
            raise Denied(DenialReason.AWAY, text + _ADVICE[DenialReason.AWAY] + ".") from error
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self._strange() from error

    def _strange(self) -> Denied:
        text = f"{self.name}: the answer is not from Hetzner's API, perhaps from a proxy"
        return Denied(DenialReason.AWAY, text + _ADVICE[DenialReason.AWAY] + ".")

    def _denied(self, error: APIException) -> Denied:
        why = _DENIALS.get(str(error.code), DenialReason.OTHER)
        if isinstance(error.code, int) and error.code < 400:  # a web page
            return self._strange()
        if isinstance(error.code, int) and error.code >= 500:
            why = DenialReason.AWAY
        if why is DenialReason.LIMIT and "core" in error.message.lower():
            why = DenialReason.CORES
        if "unsupported location" in error.message.lower():
            why = DenialReason.STOCK
        message = error.message.rstrip(".")
        return Denied(why, f"{self.name}: {message} ({error.code}){_ADVICE.get(why, '')}.")


_ALREADY_EXISTS = {"uniqueness_error"}


def accounts(tokens: str, *, endpoint: str = ENDPOINT, **options: Any) -> list[Hetzner]:
    """Return an account for each token in a text, separated by commas, spaces or newlines."""
    found = list(dict.fromkeys(tokens.replace(",", " ").split()))
    if not found:
        raise ConfigError(
            "HCLOUD_TOKEN: no token is given; put HCLOUD_TOKEN=… into .env or the environment."
        )
    if bad := [n for n, token in enumerate(found, 1) if not token.isascii()]:
        raise ConfigError(
            f"HCLOUD_TOKEN: token {bad[0]} contains invalid characters; copy it again."
        )
    return [
        Hetzner(token, name=f"account {number}", endpoint=endpoint, **options)
        for number, token in enumerate(found, 1)
    ]


def _to_offers(kind: BoundServerType, ipv4: Mapping[str, float], currency: str) -> list[Offer]:
    prices = {
        str(each["location"]): float(each["price_hourly"]["gross"])
        for each in kind.prices or ()
        if each.get("price_hourly")
    }
    return [
        Offer(
            type=str(kind.name),
            location=name,
            cores=int(kind.cores or 0),
            memory=float(kind.memory or 0),
            architecture=str(kind.architecture),
            # an address without a price is not free
            hourly=prices[name] + ipv4.get(name, max(ipv4.values(), default=0)),
            currency=currency,
            dedicated=kind.cpu_type == "dedicated",
            unavailable=_unavailability(place),
        )
        for place in kind.locations or ()
        if (name := str(place.location.name)) in prices
    ]


def _unavailability(place: ServerTypeLocation) -> str:
    if place.deprecation is not None:
        return "being withdrawn"
    return "" if place.available else "sold out"


def _ipv4_prices(pricing: Mapping[str, Any]) -> dict[str, float]:
    """Return the hourly price of an IPv4 address, by location."""
    return {
        price["location"]: float(price["price_hourly"]["gross"])
        for kind in pricing["primary_ips"]
        if kind["type"] == "ipv4"
        for price in kind["prices"]
    }


def _to_server(bound: BoundServer) -> Server:
    address = bound.public_net.ipv4 if bound.public_net else None
    return Server(
        id=int(bound.id or 0),
        name=str(bound.name),
        address=str(address.ip) if address else "",
        type=str(bound.server_type.name) if bound.server_type else "",
        location=str(bound.location.name) if bound.location else "",
        status=str(bound.status),
        labels=dict(bound.labels or {}),
        created=bound.created.timestamp() if bound.created else 0,
    )


def _rules(networks: Sequence[str]) -> list[FirewallRule]:
    """Return firewall rules: SSH in, the web out, and Dask's ports for these networks."""
    rules = [_rule("in", "tcp", "22", _ANYWHERE)]
    rules += [_rule("out", "tcp", port, _ANYWHERE) for port in ("53", "80", "443")]
    rules += [_rule("out", "udp", port, _ANYWHERE) for port in ("53", "123")]
    rules += [_rule("out", "icmp", None, _ANYWHERE)]
    for start in range(0, len(networks), _MAX_NETWORKS):
        some = networks[start : start + _MAX_NETWORKS]
        rules += [_rule(way, "tcp", port, some) for way in ("in", "out") for port in _PORTS]
    return rules


def _rule(way: str, protocol: str, port: str | None, networks: Sequence[str]) -> FirewallRule:
    sources, destinations = (list(networks) if way == each else [] for each in ("in", "out"))
    return FirewallRule(
        direction=way,
        protocol=protocol,
        port=port,
        source_ips=sources,
        destination_ips=destinations,
    )
