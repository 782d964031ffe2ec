"""The tracker as a web service: its API under /v1 and its error responses."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Path, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route

import cahlib
from cahlib.ledger.database import DatabaseUnavailable
from cahlib.tracker import (
    admin,
    hot_routes,
    metrics,
    models,
    nicknames,
    pages,
    rendering,
    statistics,
)
from cahlib.tracker.event_stream import EventStream
from cahlib.tracker.legacy import bloom, routes
from cahlib.tracker.models import ApiError, OutdatedWorker, UnknownWorker, WorkerKind
from cahlib.tracker.request_limits import RequestFilter
from cahlib.tracker.service import Service, TrackerSettings, get_service

_log = logging.getLogger(__name__)
_v1 = APIRouter(prefix="/v1", tags=["workers"])
_admin = APIRouter(prefix="/v1/admin", tags=["administrator"])

ShardNumber = Annotated[int, Path(ge=0, le=2**31 - 1, description="the shard's number")]
Credentials = Annotated[HTTPAuthorizationCredentials, Security(HTTPBearer())]


def create_app(settings: TrackerSettings, *, clock: Callable[[], float] | None = None) -> FastAPI:
    """Return the application; its database must be migrated."""
    service = Service(settings) if clock is None else Service(settings, clock=clock)
    stream = EventStream(  # by threads whose end the service awaits before its database closes
        partial(pages.overview_values, service), service.threads, each=settings.limits.streams
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.filters = (
            bloom.open_filters(FilePath(settings.filters)) if settings.filters else {}
        )
        app.state.filtering = asyncio.Semaphore(2)
        service.start()
        streaming = asyncio.create_task(stream.run(settings.live))
        yield
        streaming.cancel()
        service.close()
        for each in app.state.filters.values():
            each.close()

    app = FastAPI(
        title="cahlib tracker",
        version=cahlib.__version__,
        description="Hands out the shards of a crawl and records their results.",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from other sites
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        redirect_slashes=False,  # a redirect would lack a reverse proxy's prefix
    )
    app.state.service = service
    app.router.routes.extend([*hot_routes.hot_routes(), Route("/live", stream, methods=["GET"])])
    document = app.openapi
    app.openapi = lambda: app.openapi_schema or hot_routes.add_to_openapi(document())  # type: ignore[method-assign]
    app.include_router(_v1)
    if settings.legacy:
        app.include_router(routes.legacy_router)
    if settings.legacy and settings.rules.legacy_upload:
        app.include_router(routes.wat_router)
    if settings.filters:
        app.include_router(routes.filter_router)
    app.include_router(pages.page_router)
    app.include_router(metrics.metrics_router)
    if settings.admin:
        app.include_router(_admin)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(DatabaseUnavailable, _database_unavailable)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(RequestFilter, limits=settings.limits)
    return app


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class WorkerRegistration(_Body):
    """A worker that joins."""

    nickname: str = Field(max_length=200, description="shown on the leaderboard")
    kind: Literal["hybrid", "cpu", "gpu"]
    nickname_secret: str = Field(
        "",
        max_length=200,
        description="the first worker to send one owns the nickname; only its hash is stored",
    )
    team: str = Field(
        "", max_length=200, description="the team the nickname belongs to from now on"
    )


class ParcelDelivery(_Body):
    """An uploaded parcel that a GPU worker can download."""

    url: str = Field(
        max_length=2000, description="below the `upload` URL that registration returned"
    )
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=2**34, description="in bytes")
    tally: dict[str, Any] | None = None


class FailureReport(_Body):
    """The reason for a failure."""

    reason: str = Field(max_length=20_000)


class ShardNumbers(_Body):
    """The numbers of shards; null for all that apply."""

    shards: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = Field(None, max_length=1000)


@_v1.post("/workers", status_code=201)
def register_worker(request: Request, body: WorkerRegistration) -> dict[str, Any]:
    """Register a worker; later calls send its secret as `Authorization: Bearer`."""
    if request.headers.get("user-agent") == "cahlib":
        raise OutdatedWorker()
    service = get_service(request)
    nickname, nickname_secret = nicknames.normalize_nickname(body.nickname), body.nickname_secret
    team = nicknames.normalize_nickname(body.team, "team") if body.team else ""
    worker, secret = service.leases.register(
        nickname, WorkerKind(body.kind), nickname_secret=nickname_secret, team=team
    )
    return {
        "name": worker.name,
        "nickname": worker.nickname,
        "secret": secret,
        "lease_seconds": service.settings.rules.lease_seconds,
        "upload": service.settings.rules.upload_url,
    }


@_v1.post("/shards/{number}/parcel")
def deliver_parcel(
    request: Request, key: Credentials, number: ShardNumber, body: ParcelDelivery
) -> dict[str, bool]:
    """Report that a parcel has been uploaded; a GPU worker scores it next."""
    tally = None if body.tally is None else models.parse_stats(body.tally)
    service = get_service(request)
    models.check_parcel_url(body.url, service.settings.rules.upload_url)
    delivered = {"url": body.url, "sha256": body.sha256, "size": body.size}
    return {"counted": service.leases.deliver(key.credentials, number, delivered, stats=tally)}


@_v1.post("/shards/{number}/release")
def release_shard(request: Request, key: Credentials, number: ShardNumber) -> dict[str, bool]:
    """Return a shard that the worker will not finish; this does not count as a failure."""
    get_service(request).leases.release(key.credentials, number)
    return {"released": True}


@_v1.post("/shards/{number}/fail")
def fail_shard(
    request: Request, key: Credentials, number: ShardNumber, body: FailureReport
) -> dict[str, bool]:
    """Report a failure; other workers retry the shard until several have failed."""
    reason = models.clean_text(body.reason, 1000)
    return {"set_aside": get_service(request).leases.fail(key.credentials, number, reason)}


@_v1.post("/shards/{number}/refetch")
def refetch_parcel(
    request: Request, key: Credentials, number: ShardNumber, body: FailureReport
) -> dict[str, bool]:
    """Report a parcel that cannot be downloaded; another worker tries before a new scrape."""
    reason = models.clean_text(body.reason, 1000)
    return {"set_aside": get_service(request).leases.refetch(key.credentials, number, reason)}


@_v1.post("/leave")
def leave_tracker(request: Request, key: Credentials) -> dict[str, bool]:
    """Unregister the worker, release its shards and invalidate its secret."""
    get_service(request).leases.leave(key.credentials)
    return {"left": True}


@_v1.get("/state", tags=["public"])
def get_state(request: Request) -> dict[str, Any]:
    """Return the progress of the crawl."""
    now = get_service(request).state()
    counts = now.counts
    return {
        "shards": counts.total, "todo": counts.todo, "leased": counts.leased,
        "scraped": counts.scraped, "judging": counts.judging, "done": counts.done,
        "failed": counts.failed, "pairs": counts.pairs, "share": counts.share,
        "workers": now.workers, "shards_per_hour": now.per_hour, "eta_seconds": now.eta,
    }  # fmt: skip


@_v1.get("/leaderboard", tags=["public"])
def get_leaderboard(request: Request) -> dict[str, Any]:
    """Return the nicknames with the most pairs and with the most parcels."""
    service = get_service(request)
    return {"pairs": service.pair_leaders(), "parcels": service.parcel_leaders()}


@_v1.get("/stuck", tags=["public"])
def list_stuck_shards(request: Request) -> list[dict[str, Any]]:
    """Return the shards that failed for several workers."""
    return get_service(request).stuck()[:200]


@_admin.post("/retry")
def retry_stuck_shards(request: Request, key: Credentials, body: ShardNumbers) -> dict[str, int]:
    """Queue shards again that were set aside after failures."""
    return {"shards": admin.retry_shards(_administrator(request, key), body.shards)}


@_admin.post("/workers/{name}/expel")
def expel_worker(
    request: Request, key: Credentials, name: Annotated[str, Path(pattern="^[a-z0-9-]{1,60}$")]
) -> dict[str, bool]:
    """Expel a worker, release its shards and invalidate its secret."""
    database = _administrator(request, key)
    get_service(request).leases.expel(statistics.get_worker(database, name)["id"])
    return {"expelled": True}


def _administrator(request: Request, key: HTTPAuthorizationCredentials) -> Any:
    service = get_service(request)
    given, secret = key.credentials.encode(), service.settings.admin.encode()
    if not secrets.compare_digest(given, secret):
        raise UnknownWorker("This is not the administrator's secret.")
    return service.database


def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    status = error.status if _is_api(request) else error.legacy_status
    return _respond(request, status, str(error))


def _database_unavailable(request: Request, error: Exception) -> Response:
    _log.warning("%s: %r", error, error.__cause__)
    return _respond(request, 503, str(error), {"Retry-After": "10"})


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _respond(request, 400, "The body is not valid JSON.")
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    text = f"{models.clean_text(where, 100)}: {models.clean_text(first['msg'], 300)}."
    return _respond(request, 422 if _is_api(request) else 400, text)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _respond(request, error.status_code, str(error.detail), error.headers)


def _respond(request: Request, status: int, text: str, headers: Any = None) -> Response:
    if _is_api(request):
        return JSONResponse({"detail": text}, status, headers)
    if "text/html" in request.headers.get("accept", ""):  # a browser
        return rendering.render_error(request, status, text, headers or {})
    return PlainTextResponse(text, status, headers)


def _is_api(request: Request) -> bool:
    return request.url.path.startswith("/v1/")
