"""Preloaded by the nannies of a swarm, and called by its workers and its scheduler.

Whoever of them connects checks that the certificate on the other side is for that address, so that
a node that was taken over can be no other node, nor the head. Dask itself never checks it.
"""

from __future__ import annotations

from typing import Any


def dask_setup(server: Any) -> None:
    """Called by Dask before the process connects to anybody."""
    if context := server.connection_args.get("ssl_context"):
        context.check_hostname = True
