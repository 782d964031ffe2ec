"""The driver's side of a swarm's watchdog: its instructions, and the checks of its token.

The program on the head is `node/watchdog.py`. It has a token of its own: whoever takes over the
head finds it there, so its project should contain nothing but the swarm.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from cahlib.core.errors import ConfigError
from cahlib.core.secret_store import WATCHDOG_VARIABLE as TOKEN
from cahlib.swarm import hetzner
from cahlib.swarm.billing import Billing
from cahlib.swarm.provider import PROJECT_LABEL, Denied
from cahlib.swarm.provisioning import Provisioner

#: Seconds after its hours in which a run finishes what it has started.
_FINISH_TIME = 1800.0

#: Seconds before the start of an hour that the cost limit does not allow.
_SAFETY_MARGIN = 120.0

#: Seconds ahead for which a cost limit is computed.
_MONTH = 31 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogConfig:
    """The watchdog that a driver wants."""

    token: str = field(repr=False)
    endpoint: str
    silence: float  #: seconds without a heartbeat of the driver
    look: float = 60  #: seconds between two requests to the cloud
    began: float = field(default_factory=time.monotonic)  #: when the run's hours started

    def instructions(self, node: str, provisioner: Provisioner) -> bytes:
        """Return the instructions for a head, as `node/watchdog.py` reads them."""
        limits, now = provisioner.plan.limits, provisioner.clock()
        spans = (
            [_paid_seconds(provisioner.billing, limits.max_cost, now)] if limits.max_cost else []
        )
        if limits.hours:
            spans.append(max(limits.hours * 3600 - (time.monotonic() - self.began), 1))
        instructions = {
            "token": self.token,
            "endpoint": self.endpoint,
            "labels": provisioner.labels,
            "node": node,
            "launch": secrets.token_hex(8),
            "silence": self.silence,
            "end": spans[-1] + _FINISH_TIME if limits.hours else 0,
            "paid": min(spans, default=0),
            "look": self.look,
        }
        return json.dumps(instructions).encode()

    def check_token(self, provisioner: Provisioner, public_key: str) -> None:
        """Raise ConfigError unless the token is for the project in which servers are created."""
        if len(provisioner.accounts) != 1:
            raise ConfigError(
                "watchdog: it supports only one project; give one token in HCLOUD_TOKEN."
            )
        [account] = hetzner.accounts(self.token, endpoint=self.endpoint)
        provisioner.prepare(public_key)
        try:
            account.check()
            seen, every = account.is_prepared(provisioner.labels), account.servers({})
        except Denied as denied:
            _clean_up(provisioner)
            raise ConfigError(f"watchdog: {TOKEN}, {denied}") from denied
        others = [
            each.name for each in every if each.labels.get(PROJECT_LABEL[0]) != PROJECT_LABEL[1]
        ]
        if not seen or others:
            _clean_up(provisioner)
        if not seen:
            raise ConfigError(
                f"watchdog: {TOKEN} is not of the project of HCLOUD_TOKEN; create it there."
            )
        if others:
            raise ConfigError(
                f"watchdog: its project contains other servers ({', '.join(others[:3])}), which a "
                "compromised head could delete; create a project for cahlib only."
            )


def require_watchdog_token(token: str, tokens: str) -> str:
    """Return the watchdog's token; raise ConfigError if it is missing or among the driver's."""
    if not token.strip():
        raise ConfigError(
            f"watchdog: put {TOKEN}=… into .env or the environment: a second token of the "
            "project at Hetzner for the servers, which should contain nothing else."
        )
    if token.strip() in _split(tokens) or len(_split(token)) > 1:
        raise ConfigError(
            f"watchdog: {TOKEN} must be one token other than HCLOUD_TOKEN, so that you can revoke "
            "it alone."
        )
    return token.strip()


def _split(tokens: str) -> Collection[str]:
    return tokens.replace(",", " ").split()


def _clean_up(provisioner: Provisioner) -> None:
    """Delete the key and the firewall that were just created, unless servers use them."""
    if not provisioner.servers():
        for account in provisioner.accounts:
            account.clean(provisioner.labels)


def _paid_seconds(billing: Billing, ceiling: float, now: float) -> float:
    """Return for how many seconds the existing servers stay within a cost limit."""
    ends = (
        each.since + 3600 * hours
        for each in billing.running().values()
        for hours in range(math.ceil((now - each.since) / 3600), _MONTH // 3600)
    )
    # each paid hour is followed by another one: the first that costs too much must not begin
    last = next((end for end in sorted(ends) if billing.spent(end + 1) > ceiling), now + _MONTH)
    return max(last - _SAFETY_MARGIN - now, 1)
