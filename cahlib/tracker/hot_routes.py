"""The API calls that workers make most often, served without the framework's overhead.

msgspec decodes and validates the bodies in a thread; the application's handlers answer errors.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cahlib.tracker import models
from cahlib.tracker.leases import MAX_LEASES
from cahlib.tracker.models import (
    IDS_PER_WAT,
    MAX_PAIRS,
    InvalidRequest,
    Lease,
    MalformedRequest,
    OutdatedWorker,
    ShardResult,
)
from cahlib.tracker.service import Service

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
# typed at every level: deeper nesting is rejected before it can exhaust the stack
_JsonStats = Annotated[
    dict[str, dict[str, int | dict[str, int]]],
    msgspec.Meta(description="{stage: {in, out, lost: {reason: n}}}"),
]
# `models.parse_uids` checks them together, in a tenth of the time of a pattern for each
_Uid = Annotated[str, msgspec.Meta(description="hex md5 of url + text")]


class _Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class LeaseRequest(_Body):
    """The number of shards that a worker can take."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_LEASES)] = 1


class Heartbeat(_Body):
    """A heartbeat for all shards that a worker holds."""

    shards: Annotated[list[_Number], msgspec.Meta(max_length=1000)]
    progress: Annotated[
        str, msgspec.Meta(max_length=2000, description="a few words for the status page")
    ] = ""


class CompletionRequest(_Body):
    """The result of a shard."""

    uids: Annotated[list[_Uid], msgspec.Meta(max_length=MAX_PAIRS)]
    tally: _JsonStats
    output: Annotated[
        str, msgspec.Meta(max_length=2000, description="URL or path of the pairs")
    ] = ""
    similarities: Annotated[
        list[Annotated[float, msgspec.Meta(ge=-1, le=1)]],
        msgspec.Meta(max_length=MAX_PAIRS, description="one per pair; needed for spot checks"),
    ] = []


class PairsRequest(_Body):
    """The pairs of a shard."""

    uids: Annotated[list[_Uid], msgspec.Meta(max_length=20_000)]


def lease_shards(service: Service, secret: str, number: int, body: LeaseRequest) -> dict[str, Any]:
    """Lease shards to work on; `finished` is true if there will be no more.

    `shard` is the first of `shards`, or null.
    """
    token = object()
    if (
        service.leasing.setdefault(secret, token) is not token
    ):  # two calls at once could exceed the limit
        return {"shard": None, "shards": [], "finished": False}
    try:
        leases = [_lease_json(each) for each in service.leases.lease_several(secret, body.count)]
        finished = not leases and service.leases.finished(secret)
    finally:
        del service.leasing[secret]
    return {"shard": leases[0] if leases else None, "shards": leases, "finished": finished}


def renew_leases(service: Service, secret: str, number: int, body: Heartbeat) -> dict[str, Any]:
    """Renew the leases of a worker and return the shards that it still holds."""
    progress = models.clean_text(body.progress, 200)
    return {"shards": service.leases.heartbeat(secret, body.shards, progress)}


def complete_shard(
    service: Service, secret: str, number: int, body: CompletionRequest
) -> dict[str, Any]:
    """Complete a shard; a repeated call counts once.

    `lost` lists the pairs that belong to a shard completed earlier; omit them from the dataset.
    """
    rules = service.settings.rules
    if body.uids and rules.verify_share and not body.similarities:
        raise OutdatedWorker()
    if body.similarities and len(body.similarities) != len(body.uids):
        raise InvalidRequest("similarities: send one for each pair.")
    result = ShardResult(
        pairs=models.check_pair_count(len(body.uids), rules),
        uids=models.parse_uids(body.uids),
        similarities=tuple(body.similarities) or None,
        stats=models.parse_stats(body.tally, pairs=len(body.uids)),
        output=models.clean_text(body.output, 2000),
    )
    closed = service.leases.complete(secret, number, result)
    return {"counted": closed.counted, "lost": [uid.hex() for uid in closed.late]}


def list_claimed_pairs(
    service: Service, secret: str, number: int, body: PairsRequest
) -> dict[str, Any]:
    """Return the pairs that belong to another, completed shard; omit them from the dataset."""
    return {"taken": service.leases.claimed_pairs(secret, number, body.uids)}


_CALLS: dict[str, tuple[type[_Body], Callable[..., dict[str, Any]]]] = {
    "/v1/lease": (LeaseRequest, lease_shards),
    "/v1/heartbeat": (Heartbeat, renew_leases),
    "/v1/shards/{number}/complete": (CompletionRequest, complete_shard),
    "/v1/shards/{number}/pairs": (PairsRequest, list_claimed_pairs),
}
_DECODERS = {path: msgspec.json.Decoder(body) for path, (body, _) in _CALLS.items()}


#: Python may refuse to parse longer integers.
_NUMBER = re.compile("[0-9]{1,10}")


def hot_routes() -> list[Route]:
    """Return the routes of these calls."""
    return [
        Route(path, _Call(partial(_serve, act, _DECODERS[path])))
        for path, (_, act) in _CALLS.items()
    ]


def add_to_openapi(document: dict[str, Any]) -> dict[str, Any]:
    """Add these calls to an OpenAPI document, and return it."""
    bodies = [body for body, _ in _CALLS.values()]
    references, schemas = msgspec.json.schema_components(
        bodies, ref_template="#/components/schemas/{name}"
    )
    number = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer"}}
    for (path, (_, act)), reference in zip(_CALLS.items(), references, strict=True):
        summary, _, more = (act.__doc__ or "").partition("\n")
        call = {
            "tags": ["workers"], "summary": summary, "description": more.strip(),
            "operationId": act.__name__, "security": [{"HTTPBearer": []}],
            "parameters": [number] if "number" in path else [],
            "requestBody": {
                "required": True, "content": {"application/json": {"schema": reference}},
            },
            "responses": {"200": {"description": "Successful Response"}},
        }  # fmt: skip
        document["paths"][path] = {"post": call}
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return document


class _Call:
    """An API call as an ASGI application."""

    def __init__(self, serve: Callable[[Service, str, str, bytes], bytes]) -> None:
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        parts = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                break
        number = scope["path_params"].get("number", "0")
        service: Service = scope["app"].state.service
        arguments = _secret(scope), number, b"".join(parts)
        answer = await asyncio.get_running_loop().run_in_executor(
            service.threads, self._serve, service, *arguments
        )
        length = str(len(answer)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def _serve(
    act: Callable[..., Any], decoder: Any, service: Service, secret: str, number: str, body: bytes
) -> bytes:
    if not _NUMBER.fullmatch(number) or int(number) >= 2**31:
        raise InvalidRequest("number: there is no such shard.")
    try:
        request = decoder.decode(body)
    except msgspec.ValidationError as error:
        if act is complete_shard and b'"pairs"' in body:
            raise OutdatedWorker() from None
        what, _, where = str(error).partition(" - at `$.")
        raise InvalidRequest(f"{where.rstrip('`')}: {what}." if where else f"{what}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise MalformedRequest("The body is not valid JSON.") from None
    return msgspec.json.encode(act(service, secret, int(number), request))


def _secret(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return str(value[7:].strip(), "latin-1")
    raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})


def _lease_json(lease: Lease) -> dict[str, Any]:
    first = lease.number // 2 * IDS_PER_WAT
    return {
        "number": lease.number, "id": lease.shard.id, "url": lease.shard.url,
        "half": lease.shard.half, "start_id": first, "end_id": first + IDS_PER_WAT - 1,
        "parcel": lease.parcel,
    }  # fmt: skip
