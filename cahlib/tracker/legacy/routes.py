"""The old Crawling@Home protocol, so that the clients which people have work with this tracker.

Plain text in, plain text out, and the status code says what happened. Its jobs are our shards, and
its CPU results are parcels of a format of their own, which only its own GPU workers read.
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

from cahlib.tracker import models, names, statistics
from cahlib.tracker.bloom import Filter
from cahlib.tracker.leases import LeaseStore
from cahlib.tracker.legacy import whole_wats
from cahlib.tracker.models import IDS, Invalid, Kind, Missing, NotHeld, Refusal, Result, Unknown
from cahlib.tracker.service import of, shown_time

T = TypeVar("T")

router = APIRouter(tags=["Crawling@Home, 2021"])
files = APIRouter(prefix="/custom", tags=["Crawling@Home, whole WAT files"])
filters = APIRouter(tags=["Bloom filters"])

Type = Annotated[str, Query(max_length=20)]

#: Where a result may be: old GPU workers put it into a command line of a shell as it is. Nothing
#: here means anything to one, so `&` is missing too: it would end the command.
_SAFE = re.compile(r"rsync [A-Za-z0-9][A-Za-z0-9._-]*|https?://[A-Za-z0-9][A-Za-z0-9._~:/?@=%+,-]*")


#: Of a Bloom call, whose cost is by the line.
_MOST_LINES = 1_000_000


class Said(BaseModel):
    """What a client says with most calls."""

    token: str = Field(max_length=200)
    type: str = Field(max_length=20)


class Progress(Said):
    """How far it is, in its words."""

    progress: str = Field(max_length=20_000)


class Marked(Said):
    """The result: a count of pairs, or of a CPU worker the place of its parcel."""

    count: int | None = Field(None, ge=-(2**63), lt=2**63)
    url: str | None = Field(None, max_length=2000)


class Wat(BaseModel):
    """A WAT file's address."""

    url: str = Field(max_length=2000)


class Whole(BaseModel):
    """The results of whole WAT files."""

    urls: dict[str, str] = Field(max_length=1000)
    shards: list[int] = Field(max_length=1000)
    nickname: str = Field(max_length=200)
    token: str = Field(max_length=200)


@router.get("/api/new")
def new(
    request: Request, nickname: Annotated[str, Query(max_length=200)], type: Type
) -> dict[str, str]:
    """Register."""
    service, kind = of(request), _invited(request, type)
    worker, secret = service.lease_store.register(names.nickname(nickname), kind, old=True)
    upload = service.settings.rules.old_upload
    return {"display_name": worker.name, "token": secret, "upload_address": upload}


@router.get("/api/getUploadAddress", response_class=PlainTextResponse)
def upload_address(request: Request, type: Type) -> str:
    """Where CPU workers bring their results."""
    _kind(type)
    return of(request).settings.rules.old_upload


@router.get("/api/jobCount", response_class=PlainTextResponse)
def job_count(request: Request, type: Type) -> str:
    """How many jobs of this type can be had now."""
    counts = of(request).state().counts
    return str(counts.old if _kind(type) is Kind.GPU else counts.todo)


@router.post("/api/newJob")
def new_job(request: Request, said: Said) -> dict[str, Any]:
    """A job; one that the worker held is free again."""
    lease = _crowd(request, said).lease(said.token, old=True)
    if lease is None:
        raise NotHeld("There is no job to give now; ask again later.")
    url = lease.parcel["url"] if lease.parcel else lease.shard.url
    return _job(lease.number, url) | {"number": lease.number}


@router.post("/api/updateProgress", response_class=PlainTextResponse)
def update_progress(request: Request, said: Progress) -> str:
    """A sign of life, with words."""
    progress = models.sentence(said.progress, 200)
    _crowd(request, said).heartbeat(said.token, [], progress, old=True)
    return "success"


@router.post("/api/markAsDone", response_class=PlainTextResponse)
def mark_as_done(request: Request, said: Marked) -> str:
    """The job's result."""
    lease_store = _crowd(request, said)
    if _kind(said.type) is Kind.CPU:
        url = _address(said.url)
        lease_store.deliver(said.token, _held(request, said.token), {"url": url}, old=True)
    elif said.count is None:
        raise Invalid("count: say how many pairs were kept.")
    else:
        pairs = models.pairs(said.count, lease_store.rules)
        lease_store.complete(said.token, _held(request, said.token), Result(pairs=pairs))
    return "success"


@router.post("/api/gpuInvalidDownload", response_class=PlainTextResponse)
def gpu_invalid_download(request: Request, said: Said) -> str:
    """The CPU worker's result could not be fetched."""
    lease_store = _crowd(request, said)
    lease_store.refetch(said.token, _held(request, said.token), "Its parcel could not be fetched.")
    return "success"


@router.post("/api/validateWorker", response_class=PlainTextResponse)
def validate_worker(request: Request, said: Said) -> str:
    """Whether the tracker still knows the worker."""
    try:
        return str(of(request).lease_store.known(said.token).kind is _kind(said.type))
    except Unknown:
        return "False"


@router.post("/api/bye", response_class=PlainTextResponse)
def bye(request: Request, said: Said) -> str:
    """The worker leaves."""
    _crowd(request, said).leave(said.token)
    return "success"


@files.get("/get-cpu-wat", response_class=PlainTextResponse)
def get_cpu_wat(request: Request) -> str:
    """A WAT file none of whose shards is taken."""
    service = of(request)
    url = whole_wats.offer(service.database, service.clock(), service.settings.rules)
    if url is None:
        raise NotHeld("There is no whole WAT file to give now; ask again later.")
    return url


@files.post("/lookup-wat")
def lookup_wat(request: Request, wat: Wat) -> dict[str, Any]:
    """The two shards of a WAT file."""
    numbers = whole_wats.find(of(request).database, models.sentence(wat.url, 2000))
    if not numbers:
        return {"status": "failed", "detail": "This WAT file is not part of the crawl."}
    shards = [[number, _job(number, wat.url)] for number in numbers]
    return {"status": "success", "shards": shards}


@files.post("/markasdone-cpu")
def markasdone_cpu(request: Request, whole: Whole) -> dict[str, Any]:
    """The results of both shards of WAT files that the worker took as a whole."""
    try:
        urls = {
            number: _address(whole.urls.get(str(number)))
            for number in whole.shards
            if 0 <= number < 2**31
        }
        service = of(request)
        completed = whole_wats.bring(service.lease_store, service.database, whole.token, urls)
    except Refusal as refusal:
        return {"status": "failed", "detail": str(refusal)}
    if not completed:
        detail = "None of these shards was given out and is free still, or yours."
        return {"status": "failed", "detail": detail}
    return {"status": "success", "completed": completed}


@router.get("/data")
def data(request: Request) -> dict[str, Any]:
    """How far the crawl is."""
    state = of(request).state()
    counts = state.counts
    return {
        "completion_str": f"{counts.done:,} / {counts.total:,}",
        "completion_float": counts.share * 100,
        "total_connected_workers": sum(state.workers.values()),
        "total_pairs_scraped": counts.pairs,
        "eta": shown_time(state.eta),
    }


@router.get("/worker/{type}/{name}/data")
def worker_data(request: Request, type: str, name: str) -> dict[str, Any]:
    """What is known of a worker."""
    worker = statistics.worker(of(request).database, models.sentence(name, 60))
    if worker["kind"] != _kind(type).value:
        raise Missing(f"There is no {_kind(type).name} worker of this name.")
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


@filters.post("/deduplicate/", response_class=PlainTextResponse)
async def deduplicate(
    request: Request,
    file: Annotated[UploadFile, File()],
    key: Annotated[str, Form(max_length=100)],
) -> str:
    """The lines that the filter does not hold."""
    found = _filter(request, key)
    return "\n".join(await _in_turn(request, lambda: found.missing(_lines(file))))


@filters.post("/add/", response_class=PlainTextResponse)
async def add(
    request: Request,
    file: Annotated[UploadFile, File()],
    key: Annotated[str, Form(max_length=100)],
) -> str:
    """Add lines to the filter."""
    found = _filter(request, key)
    await _in_turn(request, lambda: found.add(_lines(file)))
    return "success"


@filters.get("/info/")
def info(request: Request, key: Annotated[str, Query(max_length=100)]) -> dict[str, int]:
    """The filter's numbers."""
    return _filter(request, key).info()


def _kind(type: str) -> Kind:
    try:
        return Kind[type.upper()]
    except KeyError:
        raise Invalid("type: it is HYBRID, CPU or GPU.") from None


def _invited(request: Request, type: str) -> Kind:
    """The kind of worker, if there is work for it: what CPU workers bring must be asked for."""
    kind = _kind(type)
    if kind is Kind.CPU and not of(request).settings.rules.old_upload:
        raise Invalid("type: this tracker names no place for the results of old CPU workers.")
    return kind


def _crowd(request: Request, said: Said) -> LeaseStore:
    """The lease_store, if the worker is of the type it says; each type has workers of its own."""
    service, kind = of(request), _invited(request, said.type)
    if service.lease_store.known(said.token).kind is not kind:
        raise Unknown(f"This tracker knows no such {kind.name} worker; register anew.")
    return service.lease_store


def _held(request: Request, token: str) -> int:
    held = of(request).lease_store.held(token)
    if not held:
        raise NotHeld("You hold no job, or it is closed already.")
    return held[0]


def _job(number: int, url: str) -> dict[str, Any]:
    first = number // 2 * IDS
    ids = {"start_id": str(first), "end_id": str(first + IDS - 1)}
    return {"url": url, **ids, "shard": number % 2}


def _address(text: str | None) -> str:
    address = models.sentence(text or "", 2000)
    if not _SAFE.fullmatch(address):
        raise Invalid("url: say where the result can be fetched: `rsync NAME`, or a plain URL.")
    if not address.startswith("rsync ") and not _is_public(urlsplit(address).hostname or ""):
        raise Invalid("url: GPU workers fetch the result over the internet; name a public host.")
    return address


def _is_public(host: str) -> bool:
    """Whether a host may be public, as far as its name tells: nothing is looked up."""
    last = host.rstrip(".").rpartition(".")[2]
    if last in ("localhost", "local", "internal", "lan"):
        return False
    if not last[:1].isdigit():
        return True
    try:  # an address, also one that only old programs take: 127.1, 0x7f.1, 2130706433
        return IPv4Address(socket.inet_aton(host)).is_global
    except OSError:
        return False


async def _in_turn(request: Request, act: Callable[[], T]) -> T:
    """Do what takes seconds, two at a time: whoever waits for that takes no thread from others."""
    async with request.app.state.filtering:
        return await run_in_threadpool(act)


def _lines(file: UploadFile) -> list[str]:
    text = file.file.read().decode("utf-8", "replace")
    if text.count("\n") > _MOST_LINES:  # before there are as many strings
        raise Invalid(f"file: bring at most {_MOST_LINES:,} lines at once.")
    return [line for line in (line.strip() for line in text.split("\n")) if line]


def _filter(request: Request, key: str) -> Filter:
    found: Filter | None = request.app.state.filters.get(key)
    if found is None:
        raise Missing("There is no filter of this name.")
    return found
