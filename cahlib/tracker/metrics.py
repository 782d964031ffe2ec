"""The tracker's metrics for Prometheus: progress, and values to alert on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from sqlalchemy import func, select

from cahlib.ledger.database import Database
from cahlib.ledger.schema import is_one_of, shards
from cahlib.tracker.schema import failures
from cahlib.tracker.service import CrawlState, get_service

metrics_router = APIRouter(tags=["public"])

_HOUR = 3600


@metrics_router.get("/metrics", response_class=PlainTextResponse)
def get_metrics(request: Request) -> PlainTextResponse:
    """Return the metrics for Prometheus."""
    service = get_service(request)
    state = service.state()
    first, failed = oldest_lease_and_failures(service.database, state.time)
    quiet = max(service.settings.rules.lease_seconds - (first - state.time), 0) if first else 0
    done = _done(state)
    every = [
        *_metric("shards", "gauge", "Shards by state; todo and scraped are queued.", {
            f'state="{name}"': getattr(state.counts, name)
            for name in ("todo", "leased", "scraped", "judging", "failed", "done")
        }),
        *_metric("workers", "gauge", "Connected workers by kind.", {
            f'kind="{kind}"': count for kind, count in state.workers.items()
        }),
        *_metric("pairs_total", "counter", "Pairs in completed shards.", {"": state.counts.pairs}),
        *_metric("parcels_total", "counter", "Parcels delivered.", {"": state.counts.parcels}),
        *_metric("oldest_lease_seconds", "gauge", "Seconds since the oldest heartbeat of a lease; "
                 "0 without leases.", {"": round(quiet, 1)}),
        *_metric("failures_hour", "gauge", "Failures in the last hour.", {"": failed}),
        *_metric("error_share", "gauge", "Failed share of the attempts of the last hour.",
                 {"": round(failed / max(failed + done, 1), 4)}),
    ]  # fmt: skip
    return PlainTextResponse("\n".join(every) + "\n", media_type="text/plain; version=0.0.4")


def oldest_lease_and_failures(database: Database, now: float) -> tuple[float | None, int]:
    """Return when the first lease expires, if any, and the failures of the last hour."""
    held = is_one_of(shards.c.state, "leased", "judging")
    with database.read() as connection:
        first = connection.execute(select(func.min(shards.c.expires)).where(held)).scalar()
        lately = select(func.count()).where(failures.c.time > now - _HOUR)
        return first, connection.execute(lately).scalar_one()


def _done(state: CrawlState) -> int:
    """Return the shards finished in the last hour, or since the tracker started."""
    before = [row for row in state.ever if row["time"] <= state.time - _HOUR]
    return max(state.counts.done - (before[-1]["done"] if before else 0), 0)


def _metric(name: str, kind: str, text: str, values: dict[str, Any]) -> Iterable[str]:
    yield f"# HELP cah_{name} {text}"
    yield f"# TYPE cah_{name} {kind}"
    for labels, value in values.items():
        yield f"cah_{name}{{{labels}}} {value}" if labels else f"cah_{name} {value}"
