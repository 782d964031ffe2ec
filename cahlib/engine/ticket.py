"""Tickets: one file with which a machine drives a swarm that another one created.

It holds the head's address and a certificate that expires with the session. Whoever has it can run
code on that swarm until then, and nothing else: it contains no cloud token, no SSH key, and not the
authority's key. It does not know how it is transferred.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from cahlib.core.errors import ConfigError, describe_read_error
from cahlib.engine.certificates import Certificates
from cahlib.engine.cluster import ClusterAddress

#: The files of `Certificates` that a driver needs.
_FILES = ("authority.crt", "driver.key", "driver.crt")

#: Seconds without an answer after which a swarm counts as deleted: GPU hours are limited.
_MAX_OUTAGE = 300


def issue_ticket(address: ClusterAddress, *, hours: float) -> bytes:
    """Return a ticket to a swarm whose keys are on this machine."""
    assert address.keys
    key, certificate = address.keys.guest(hours)
    texts = (address.keys.authority().public.read_bytes(), key, certificate)
    files = {name: text.decode() for name, text in zip(_FILES, texts, strict=True)}
    return json.dumps({"address": address.address, "away": address.parcel_folder, **files}).encode()


def read_ticket(path: Path, folder: Path) -> ClusterAddress:
    """Return a ticket's swarm, after writing its keys to ``folder``; raise ConfigError."""
    try:
        ticket = json.loads(path.read_bytes())
        address, away = str(ticket["address"]), str(ticket["away"])
        files = {name: str(ticket[name]) for name in _FILES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"engine: {path} is neither an address (tls://HOST:PORT) nor a ticket "
            f"({describe_read_error(error)})."
        ) from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in files.items():
        target = folder / name
        target.unlink(missing_ok=True)
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    return ClusterAddress(
        address=address, keys=Certificates(folder), parcel_folder=away, max_outage=_MAX_OUTAGE
    )
