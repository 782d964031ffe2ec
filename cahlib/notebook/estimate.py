"""Estimates for a running run: the slowest step, the time and cost to go, and advice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cahlib.core.wording import plural

#: Share of the time that the model may work before more nodes bring nothing.
_FED = 0.85

#: What is slow when a line is full, by the line's name.
_FULL = {
    "parcels": "judging is the slowest step: parcels wait for the model",
    "judged": "writing is the slowest step: judged images wait for the disk",
    "committed": "uploading is the slowest step: finished shards wait for it",
}


def bottleneck(live: Mapping[str, Any]) -> str:
    """Return which step the others wait for, in words; "" while nothing can be read yet."""
    if not live.get("queues"):
        return ""
    for name, sentence in _FULL.items():
        waiting, limit = live.get("queues", {}).get(name, (0, 0))
        if limit and waiting >= limit:
            return sentence
    return "scraping is the slowest step: the model waits for images"


def advice(live: Mapping[str, Any]) -> str:
    """Return advice on the number of nodes, from the rates of the last seconds; "" if none."""
    swarm = len(live.get("nodes") or ())
    busy, images = live.get("busy", 0), live.get("rates", {}).get("judged", 0)
    if live.get("state") != "running" or not images or not swarm:
        return ""
    if busy < _FED and not _waiting(live, "parcels"):
        more = max(1, min(math.ceil(swarm * (_FED / max(busy, 0.01) - 1)), 20))
        return f"The model waits for images: add {plural(more, 'node')}"
    waiting, limit = live.get("queues", {}).get("parcels", (0, 0))
    if swarm > 1 and busy > 0.97 and limit and waiting >= limit:
        return "The nodes wait for the model: fewer would do"
    return ""


def remaining_seconds(live: Mapping[str, Any]) -> float | None:
    """Return the seconds until all shards are done, at the speed of this launch so far."""
    here = live.get("done", 0) - live.get("before", 0)
    if here <= 0:
        return None
    return float(live["elapsed"] * (live["shards"] - live["done"]) / here)


def projected_cost(live: Mapping[str, Any]) -> float | None:
    """Return what the servers will have cost by then."""
    left = remaining_seconds(live)
    if left is None or not live.get("hourly"):
        return None
    return float(live["spent"] + live["hourly"] * left / 3600)


def _waiting(live: Mapping[str, Any], name: str) -> int:
    return int(live.get("queues", {}).get(name, (0, 0))[0])
