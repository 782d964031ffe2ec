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
from cahlib.tracker import admin, bloom, calls, metrics, models, names, pages, rendering, statistics
from cahlib.tracker.legacy import routes
from cahlib.tracker.limits import Gate
from cahlib.tracker.models import Kind, Outdated, Refusal, Unknown
from cahlib.tracker.service import Service, Settings, of
from cahlib.tracker.stream import Stream

_log = logging.getLogger(__name__)
_v1 = APIRouter(prefix="/v1", tags=["workers"])
_admin = APIRouter(prefix="/v1/admin", tags=["administrator"])

Number = Annotated[int, Path(ge=0, le=2**31 - 1, description="the shard's number")]
Key = Annotated[HTTPAuthorizationCredentials, Security(HTTPBearer())]


def create(settings: Settings, *, clock: Callable[[], float] | None = None) -> FastAPI:
    """Return the application; its database must have been migrated."""
    service = Service(settings) if clock is None else Service(settings, clock=clock)
    stream = Stream(partial(pages.look, service), each=settings.limits.streams)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.filters = bloom.open_all(FilePath(settings.filters)) if settings.filters else {}
        app.state.filtering = asyncio.Semaphore(2)
        service.start()
        looking = asyncio.create_task(stream.run(settings.live))
        yield
        looking.cancel()
        service.close()
        for each in app.state.filters.values():
            each.close()

    app = FastAPI(
        title="cahlib tracker",
        version=cahlib.__version__,
        description="Hands out the shards of a crawl and records their results.",
        lifespan=life,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        redirect_slashes=False,  # a redirect would lack the prefix of a reverse proxy
    )
    app.state.service = service
    app.router.routes.extend([*calls.routes(), Route("/live", stream, methods=["GET"])])
    document = app.openapi
    app.openapi = lambda: app.openapi_schema or calls.described(document())  # type: ignore[method-assign]
    app.include_router(_v1)
    if settings.legacy:
        app.include_router(routes.router)
    if settings.legacy and settings.rules.old_upload:
        app.include_router(routes.files)
    if settings.filters:
        app.include_router(routes.filters)
    app.include_router(pages.router)
    app.include_router(metrics.router)
    if settings.admin:
        app.include_router(_admin)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(DatabaseUnavailable, _away)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _plain)
    app.add_middleware(Gate, limits=settings.limits)
    return app


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Newcomer(_Body):
    """A worker that wants to join."""

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


class Delivery(_Body):
    """An uploaded parcel that a GPU worker can download."""

    url: str = Field(
        max_length=2000, description="below the `upload` URL that registration returned"
    )
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=2**34, description="in bytes")
    tally: dict[str, Any] | None = None


class Failure(_Body):
    """The reason for a failure."""

    reason: str = Field(max_length=20_000)


class Numbers(_Body):
    """The numbers of shards; null means all that apply."""

    shards: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] | None = Field(None, max_length=1000)


@_v1.post("/workers", status_code=201)
def register(request: Request, body: Newcomer) -> dict[str, Any]:
    """Register a worker; later calls send its secret as `Authorization: Bearer`."""
    if request.headers.get("user-agent") == "cahlib":
        raise Outdated()
    service = of(request)
    nickname, proof = names.nickname(body.nickname), body.nickname_secret
    team = names.nickname(body.team, "team") if body.team else ""
    worker, secret = service.lease_store.register(nickname, Kind(body.kind), proof=proof, team=team)
    return {
        "name": worker.name,
        "nickname": worker.nickname,
        "secret": secret,
        "lease_seconds": service.settings.rules.lease,
        "upload": service.settings.rules.upload,
    }


@_v1.post("/shards/{number}/parcel")
def parcel(request: Request, key: Key, number: Number, body: Delivery) -> dict[str, bool]:
    """Report that a parcel has been uploaded; a GPU worker scores it next."""
    tally = None if body.tally is None else models.stats(body.tally)
    service = of(request)
    place = models.place(body.url, service.settings.rules.upload)
    brought = {"url": place, "sha256": body.sha256, "size": body.size}
    return {"counted": service.lease_store.deliver(key.credentials, number, brought, stats=tally)}


@_v1.post("/shards/{number}/release")
def release(request: Request, key: Key, number: Number) -> dict[str, bool]:
    """Return a shard that the worker will not finish; this does not count as a failure."""
    of(request).lease_store.release(key.credentials, number)
    return {"released": True}


@_v1.post("/shards/{number}/fail")
def fail(request: Request, key: Key, number: Number, body: Failure) -> dict[str, bool]:
    """Report a failure; other workers retry the shard until several have failed."""
    reason = models.sentence(body.reason, 1000)
    return {"set_aside": of(request).lease_store.fail(key.credentials, number, reason)}


@_v1.post("/shards/{number}/refetch")
def refetch(request: Request, key: Key, number: Number, body: Failure) -> dict[str, bool]:
    """Report a parcel that cannot be downloaded; another worker tries before a new scrape."""
    reason = models.sentence(body.reason, 1000)
    return {"set_aside": of(request).lease_store.refetch(key.credentials, number, reason)}


@_v1.post("/leave")
def leave(request: Request, key: Key) -> dict[str, bool]:
    """Unregister the worker, release its shards and invalidate its secret."""
    of(request).lease_store.leave(key.credentials)
    return {"left": True}


@_v1.get("/state", tags=["public"])
def state(request: Request) -> dict[str, Any]:
    """Return the progress of the crawl."""
    now = of(request).state()
    counts = now.counts
    return {
        "shards": counts.total, "todo": counts.todo, "leased": counts.leased,
        "scraped": counts.scraped, "judging": counts.judging, "done": counts.done,
        "failed": counts.failed, "pairs": counts.pairs, "share": counts.share,
        "workers": now.workers, "shards_per_hour": now.per_hour, "eta_seconds": now.eta,
    }  # fmt: skip


@_v1.get("/leaderboard", tags=["public"])
def leaderboard(request: Request) -> dict[str, Any]:
    """Return the nicknames with the most pairs and with the most parcels."""
    service = of(request)
    return {"pairs": service.pairs_board(), "parcels": service.parcel_board()}


@_v1.get("/stuck", tags=["public"])
def stuck(request: Request) -> list[dict[str, Any]]:
    """Return the shards that failed for several workers."""
    return of(request).stuck()[:200]


@_admin.post("/retry")
def retry(request: Request, key: Key, body: Numbers) -> dict[str, int]:
    """Queue shards again that were set aside after failures."""
    return {"shards": admin.retry(_administrator(request, key), body.shards)}


@_admin.post("/workers/{name}/expel")
def expel(
    request: Request, key: Key, name: Annotated[str, Path(pattern="^[a-z0-9-]{1,60}$")]
) -> dict[str, bool]:
    """Expel a worker, release its shards and invalidate its secret."""
    database = _administrator(request, key)
    of(request).lease_store.expel(statistics.worker(database, name)["id"])
    return {"expelled": True}


def _administrator(request: Request, key: HTTPAuthorizationCredentials) -> Any:
    service = of(request)
    given, secret = key.credentials.encode(), service.settings.admin.encode()
    if not secrets.compare_digest(given, secret):
        raise Unknown("This is not the administrator's secret.")
    return service.database


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    status = error.status if _is_ours(request) else error.old_status
    return _answer(request, status, str(error))


def _away(request: Request, error: Exception) -> Response:
    _log.warning("%s: %r", error, error.__cause__)
    return _answer(request, 503, str(error), {"Retry-After": "10"})


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _answer(request, 400, "The body is not JSON.")
    where = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    text = f"{models.sentence(where, 100)}: {models.sentence(first['msg'], 300)}."
    return _answer(request, 422 if _is_ours(request) else 400, text)


def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, str(error.detail), error.headers)


def _answer(request: Request, status: int, text: str, headers: Any = None) -> Response:
    if _is_ours(request):
        return JSONResponse({"detail": text}, status, headers)
    if "text/html" in request.headers.get("accept", ""):  # a browser
        return rendering.refusal(request, status, text, headers or {})
    return PlainTextResponse(text, status, headers)


def _is_ours(request: Request) -> bool:
    return request.url.path.startswith("/v1/")
