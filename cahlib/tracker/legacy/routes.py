"""The Crawling@Home protocol of 2021, so that the clients that people have work with this tracker.

Plain text in, plain text out, and the status code tells what happened. Its jobs are our shards; its
CPU results are parcels of another format, which only legacy GPU workers read.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from cahlib.tracker import charts, models, nicknames, statistics
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.legacy import wats
from cahlib.tracker.legacy.bloom import BloomFilter
from cahlib.tracker.models import (
    IDS_PER_WAT,
    ApiError,
    InvalidRequest,
    NotFound,
    NotHeld,
    ShardResult,
    UnknownWorker,
    WorkerKind,
)
from cahlib.tracker.service import get_service

_T = TypeVar("_T")

legacy_router = APIRouter(tags=["Crawling@Home, 2021"])
wat_router = APIRouter(prefix="/custom", tags=["Crawling@Home, whole WAT files"])
filter_router = APIRouter(tags=["Bloom filters"])

_Type = Annotated[str, Query(max_length=20)]

#: Allowed locations of a result: legacy GPU workers put it into a shell command unquoted. No
#: character here means anything to a shell; `&` would end the command.
_SAFE_ADDRESS = re.compile(
    r"rsync [A-Za-z0-9][A-Za-z0-9._-]*|https?://[A-Za-z0-9][A-Za-z0-9._~:/?@=%+,-]*"
)


#: Most lines of a Bloom filter call, whose cost grows with them.
_MAX_LINES = 1_000_000


class LegacyRequest(BaseModel):
    """The body that a client sends with most calls."""

    token: str = Field(max_length=200)
    type: str = Field(max_length=20)


class LegacyProgress(LegacyRequest):
    """A client's progress, in its own words."""

    progress: str = Field(max_length=20_000)


class LegacyResult(LegacyRequest):
    """A result: the number of pairs, or the location of a CPU worker's parcel."""

    count: int | None = Field(None, ge=-(2**63), lt=2**63)
    url: str | None = Field(None, max_length=2000)


class WatLookup(BaseModel):
    """The URL of a WAT file."""

    url: str = Field(max_length=2000)


class WatResults(BaseModel):
    """The results of whole WAT files."""

    urls: dict[str, str] = Field(max_length=1000)
    shards: list[int] = Field(max_length=1000)
    nickname: str = Field(max_length=200)
    token: str = Field(max_length=200)


@legacy_router.get("/api/new")
def register_legacy(
    request: Request, nickname: Annotated[str, Query(max_length=200)], type: _Type
) -> dict[str, str]:
    """Register a worker."""
    service, kind = get_service(request), _parse_invited_kind(request, type)
    worker, secret = service.leases.register(
        nicknames.normalize_nickname(nickname), kind, legacy=True
    )
    upload = service.settings.rules.legacy_upload
    return {"display_name": worker.name, "token": secret, "upload_address": upload}


@legacy_router.get("/api/getUploadAddress", response_class=PlainTextResponse)
def get_upload_address(request: Request, type: _Type) -> str:
    """Return where CPU workers upload their results."""
    _parse_kind(type)
    return get_service(request).settings.rules.legacy_upload


@legacy_router.get("/api/jobCount", response_class=PlainTextResponse)
def count_jobs(request: Request, type: _Type) -> str:
    """Return the number of jobs of this type."""
    counts = get_service(request).state().counts
    return str(counts.legacy_parcels if _parse_kind(type) is WorkerKind.GPU else counts.todo)


@legacy_router.post("/api/newJob")
def give_job(request: Request, body: LegacyRequest) -> dict[str, Any]:
    """Return a job; the one that the worker held is free again."""
    lease = _store_for(request, body).lease(body.token, legacy=True)
    if lease is None:
        raise NotHeld("There is no job now; ask again later.")
    url = lease.parcel["url"] if lease.parcel else lease.shard.url
    return _job_json(lease.number, url) | {"number": lease.number}


@legacy_router.post("/api/updateProgress", response_class=PlainTextResponse)
def update_progress(request: Request, body: LegacyProgress) -> str:
    """Renew the worker's lease, with its progress."""
    progress = models.clean_text(body.progress, 200)
    _store_for(request, body).heartbeat(body.token, [], progress, legacy=True)
    return "success"


@legacy_router.post("/api/markAsDone", response_class=PlainTextResponse)
def mark_as_done(request: Request, body: LegacyResult) -> str:
    """Record the result of the job."""
    lease_store = _store_for(request, body)
    if _parse_kind(body.type) is WorkerKind.CPU:
        url = _parse_address(body.url)
        lease_store.deliver(body.token, _held_shard(request, body.token), {"url": url}, legacy=True)
    elif body.count is None:
        raise InvalidRequest("count: send the number of pairs that were kept.")
    else:
        pairs = models.check_pair_count(body.count, lease_store.rules)
        lease_store.complete(body.token, _held_shard(request, body.token), ShardResult(pairs=pairs))
    return "success"


@legacy_router.post("/api/gpuInvalidDownload", response_class=PlainTextResponse)
def gpu_invalid_download(request: Request, body: LegacyRequest) -> str:
    """Record that a CPU worker's result could not be downloaded."""
    lease_store = _store_for(request, body)
    lease_store.refetch(
        body.token, _held_shard(request, body.token), "The parcel could not be downloaded."
    )
    return "success"


@legacy_router.post("/api/validateWorker", response_class=PlainTextResponse)
def validate_worker(request: Request, body: LegacyRequest) -> str:
    """Return whether the tracker still knows the worker."""
    try:
        return str(get_service(request).leases.known(body.token).kind is _parse_kind(body.type))
    except UnknownWorker:
        return "False"


@legacy_router.post("/api/bye", response_class=PlainTextResponse)
def leave_legacy(request: Request, body: LegacyRequest) -> str:
    """Unregister the worker."""
    _store_for(request, body).leave(body.token)
    return "success"


@wat_router.get("/get-cpu-wat", response_class=PlainTextResponse)
def get_cpu_wat(request: Request) -> str:
    """Return a WAT file whose shards are both free."""
    service = get_service(request)
    url = wats.offer_wat(service.database, service.clock(), service.settings.rules)
    if url is None:
        raise NotHeld("There is no free WAT file now; ask again later.")
    return url


@wat_router.post("/lookup-wat")
def lookup_wat(request: Request, wat: WatLookup) -> dict[str, Any]:
    """Return the two shards of a WAT file."""
    numbers = wats.find_wat_shards(get_service(request).database, models.clean_text(wat.url, 2000))
    if not numbers:
        return {"status": "failed", "detail": "This WAT file is not part of the crawl."}
    shards = [[number, _job_json(number, wat.url)] for number in numbers]
    return {"status": "success", "shards": shards}


@wat_router.post("/markasdone-cpu")
def markasdone_cpu(request: Request, whole: WatResults) -> dict[str, Any]:
    """Record the results of both shards of whole WAT files."""
    try:
        urls = {
            number: _parse_address(whole.urls.get(str(number)))
            for number in whole.shards
            if 0 <= number < 2**31
        }
        service = get_service(request)
        completed = wats.deliver_wats(service.leases, whole.token, urls)
    except ApiError as error:
        return {"status": "failed", "detail": str(error)}
    if not completed:
        detail = "None of these shards was offered and is still free, or is leased to this worker."
        return {"status": "failed", "detail": detail}
    return {"status": "success", "completed": completed}


@legacy_router.get("/data")
def get_progress(request: Request) -> dict[str, Any]:
    """Return the progress of the crawl."""
    state = get_service(request).state()
    counts = state.counts
    return {
        "completion_str": f"{counts.done:,} / {counts.total:,}",
        "completion_float": counts.share * 100,
        "total_connected_workers": sum(state.workers.values()),
        "total_pairs_scraped": counts.pairs,
        "eta": charts.human_duration(state.eta),
    }


@legacy_router.get("/worker/{type}/{name}/data")
def get_worker_data(request: Request, type: str, name: str) -> dict[str, Any]:
    """Return what is known of a worker."""
    worker = statistics.get_worker(get_service(request).database, models.clean_text(name, 60))
    if worker["kind"] != _parse_kind(type).value:
        raise NotFound(f"There is no {_parse_kind(type).name} worker with this name.")
    return {
        "display_name": worker["name"],
        "shard_number": worker["shards"][0] if worker["shards"] else -1,
        "progress": worker["progress"],
        "jobs_completed": worker["scraped" if worker["kind"] == "cpu" else "done"],
        "first_seen": int(worker["first_seen"]),
        "last_seen": int(worker["last_seen"]),
        "user_nickname": worker["nickname"],
        "type": worker["kind"].upper(),
    }


@filter_router.post("/deduplicate/", response_class=PlainTextResponse)
async def filter_lines(
    request: Request, file: Annotated[UploadFile, File()], key: Annotated[str, Form(max_length=100)]
) -> str:
    """Return the lines that are not in the filter."""
    found = _filter(request, key)
    return "\n".join(await _run_limited(request, lambda: found.missing(_lines(file))))


@filter_router.post("/add/", response_class=PlainTextResponse)
async def add_lines(
    request: Request, file: Annotated[UploadFile, File()], key: Annotated[str, Form(max_length=100)]
) -> str:
    """Add lines to the filter."""
    found = _filter(request, key)
    await _run_limited(request, lambda: found.add(_lines(file)))
    return "success"


@filter_router.get("/info/")
def get_filter_info(request: Request, key: Annotated[str, Query(max_length=100)]) -> dict[str, int]:
    """Return the filter's numbers."""
    return _filter(request, key).info()


def _parse_kind(type: str) -> WorkerKind:
    try:
        return WorkerKind[type.upper()]
    except KeyError:
        raise InvalidRequest("type: it must be HYBRID, CPU or GPU.") from None


def _parse_invited_kind(request: Request, type: str) -> WorkerKind:
    """Return the kind of worker; raise InvalidRequest if there is no work for it."""
    kind = _parse_kind(type)
    if kind is WorkerKind.CPU and not get_service(request).settings.rules.legacy_upload:
        raise InvalidRequest(
            "type: this tracker accepts no results of legacy CPU workers; it has no --old-upload."
        )
    return kind


def _store_for(request: Request, body: LegacyRequest) -> LeaseStore:
    """Return the lease store if the worker is of the type it claims; raise UnknownWorker."""
    service, kind = get_service(request), _parse_invited_kind(request, body.type)
    if service.leases.known(body.token).kind is not kind:
        raise UnknownWorker(f"This tracker does not know this {kind.name} worker; register again.")
    return service.leases


def _held_shard(request: Request, token: str) -> int:
    held = get_service(request).leases.held_shards(token)
    if not held:
        raise NotHeld("This worker holds no job, or the job is finished.")
    return held[0]


def _job_json(number: int, url: str) -> dict[str, Any]:
    first = number // 2 * IDS_PER_WAT
    ids = {"start_id": str(first), "end_id": str(first + IDS_PER_WAT - 1)}
    return {"url": url, **ids, "shard": number % 2}


def _parse_address(text: str | None) -> str:
    address = models.clean_text(text or "", 2000)
    if not _SAFE_ADDRESS.fullmatch(address):
        raise InvalidRequest(
            "url: send where the result can be downloaded: `rsync NAME`, or a plain URL."
        )
    if not address.startswith("rsync ") and not _is_public(urlsplit(address).hostname or ""):
        raise InvalidRequest(
            "url: GPU workers download the result over the internet; use a public host."
        )
    return address


def _is_public(host: str) -> bool:
    """Return whether a host may be public as far as its name tells; nothing is resolved."""
    last = host.rstrip(".").rpartition(".")[2]
    if last in ("localhost", "local", "internal", "lan"):
        return False
    if not last[:1].isdigit():
        return True
    try:  # an address, or a form that only old programs accept: 127.1, 0x7f.1, 2130706433
        return IPv4Address(socket.inet_aton(host)).is_global
    except OSError:
        return False


async def _run_limited(request: Request, act: Callable[[], _T]) -> _T:
    """Run what takes seconds, two at a time, so that waiting calls occupy no threads."""
    async with request.app.state.filtering:
        return await run_in_threadpool(act)


def _lines(file: UploadFile) -> list[str]:
    text = file.file.read().decode("utf-8", "replace")
    if text.count("\n") > _MAX_LINES:  # before creating as many strings
        raise InvalidRequest(f"file: send at most {_MAX_LINES:,} lines at once.")
    return [line for line in (line.strip() for line in text.split("\n")) if line]


def _filter(request: Request, key: str) -> BloomFilter:
    found: BloomFilter | None = request.app.state.filters.get(key)
    if found is None:
        raise NotFound("There is no filter with this name.")
    return found
