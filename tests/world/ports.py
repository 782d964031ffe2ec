"""Ports for servers that are started later, or never."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

#: Below those that systems give to whoever connects (Linux: from 32768): one of these may be taken
#: by any connection between its choice and its use.
_PORTS = range(15_000, 30_000)

_chance = random.SystemRandom()  # the suite seeds the other one alike in all processes


def free_port() -> int:
    """Return a port of loopback that nobody uses now, nor is given by chance."""
    while True:
        port = _chance.choice(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
