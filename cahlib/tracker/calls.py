"""The API calls that workers make most often, served without the framework's overhead.

msgspec decodes and validates bodies on a thread; the application's handlers answer errors.
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
from cahlib.tracker.leases import MOST_LEASES
from cahlib.tracker.models import IDS, MOST_PAIRS, Invalid, Lease, Malformed, Outdated, Result
from cahlib.tracker.service import Service

Number = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
# typed at every level: deeper nesting is rejected before it can exhaust the stack
Stats = Annotated[
    dict[str, dict[str, int | dict[str, int]]],
    msgspec.Meta(description="{stage: {in, out, lost: {reason: n}}}"),
]
# `rules.uids` checks them all at once, in a tenth of the time that a pattern each takes
Uid = Annotated[str, msgspec.Meta(description="hex md5 of url + text")]


class _Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Wish(_Body):
    """The number of shards that a worker can take."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_LEASES)] = 1


class Beat(_Body):
    """A heartbeat for all shards that a worker holds."""

    shards: Annotated[list[Number], msgspec.Meta(max_length=1000)]
    progress: Annotated[
        str, msgspec.Meta(max_length=2000, description="a few words for the status page")
    ] = ""


class Done(_Body):
    """The result of a shard."""

    uids: Annotated[list[Uid], msgspec.Meta(max_length=MOST_PAIRS)]
    tally: Stats
    output: Annotated[
        str, msgspec.Meta(max_length=2000, description="URL or path of the pairs")
    ] = ""
    similarities: Annotated[
        list[Annotated[float, msgspec.Meta(ge=-1, le=1)]],
        msgspec.Meta(max_length=MOST_PAIRS, description="one per pair; needed for spot checks"),
    ] = []


class Uids(_Body):
    """The pairs of a shard."""

    uids: Annotated[list[Uid], msgspec.Meta(max_length=20_000)]


def lease(service: Service, secret: str, number: int, body: Wish) -> dict[str, Any]:
    """Lease shards to work on; `finished` is true if there will be no more.

    `shard` is the first of `shards`, or null.
    """
    ours = object()
    if service.leasing.setdefault(secret, ours) is not ours:  # two at once would exceed the limit
        return {"shard": None, "shards": [], "finished": False}
    try:
        leases = [_shown(each) for each in service.lease_store.lease_several(secret, body.count)]
        finished = not leases and service.lease_store.finished(secret)
    finally:
        del service.leasing[secret]
    return {"shard": leases[0] if leases else None, "shards": leases, "finished": finished}


def heartbeat(service: Service, secret: str, number: int, body: Beat) -> dict[str, Any]:
    """Renew the leases of a worker and return the shards that it still holds."""
    progress = models.sentence(body.progress, 200)
    return {"shards": service.lease_store.heartbeat(secret, body.shards, progress)}


def complete(service: Service, secret: str, number: int, body: Done) -> dict[str, Any]:
    """Complete a shard; a repeated call counts once.

    `lost` lists the pairs that belong to a shard completed earlier; omit them from the dataset.
    """
    allowed = service.settings.rules
    if body.uids and allowed.verify and not body.similarities:
        raise Outdated()
    if body.similarities and len(body.similarities) != len(body.uids):
        raise Invalid("similarities: there is one for each pair.")
    result = Result(
        pairs=models.pairs(len(body.uids), allowed),
        uids=models.uids(body.uids),
        similarities=tuple(body.similarities) or None,
        stats=models.stats(body.tally, pairs=len(body.uids)),
        output=models.sentence(body.output, 2000),
    )
    closed = service.lease_store.complete(secret, number, result)
    return {"counted": closed.counted, "lost": [uid.hex() for uid in closed.lost]}


def pairs(service: Service, secret: str, number: int, body: Uids) -> dict[str, Any]:
    """Return the pairs that belong to another, completed shard; omit them from the dataset."""
    return {"taken": service.lease_store.claimed_pairs(secret, number, body.uids)}


_CALLS: dict[str, tuple[type[_Body], Callable[..., dict[str, Any]]]] = {
    "/v1/lease": (Wish, lease),
    "/v1/heartbeat": (Beat, heartbeat),
    "/v1/shards/{number}/complete": (Done, complete),
    "/v1/shards/{number}/pairs": (Uids, pairs),
}


#: Python may refuse to parse longer integers.
_NUMBER = re.compile("[0-9]{1,10}")


def routes() -> list[Route]:
    """Return the routes of these calls."""
    return [
        Route(path, _Call(partial(_serve, act, msgspec.json.Decoder(body))))
        for path, (body, act) in _CALLS.items()
    ]


def described(document: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document with these calls in it."""
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
        said = _secret(scope), number, b"".join(parts)
        answer = await asyncio.get_running_loop().run_in_executor(
            service.threads, self._serve, service, *said
        )
        length = str(len(answer)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def _serve(
    act: Callable[..., Any], decoder: Any, service: Service, secret: str, number: str, body: bytes
) -> bytes:
    if not _NUMBER.fullmatch(number) or int(number) >= 2**31:
        raise Invalid("number: there is no shard of such a number.")
    try:
        said = decoder.decode(body)
    except msgspec.ValidationError as error:
        if act is complete and b'"pairs"' in body:
            raise Outdated() from None
        what, _, where = str(error).partition(" - at `$.")
        raise Invalid(f"{where.rstrip('`')}: {what}." if where else f"{what}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed("The body is not JSON.") from None
    return msgspec.json.encode(act(service, secret, int(number), said))


def _secret(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return str(value[7:].strip(), "latin-1")
    raise HTTPException(401, "Not authenticated", {"WWW-Authenticate": "Bearer"})


def _shown(lease: Lease) -> dict[str, Any]:
    first = lease.number // 2 * IDS
    return {
        "number": lease.number, "id": lease.shard.id, "url": lease.shard.url,
        "half": lease.shard.half, "start_id": first, "end_id": first + IDS - 1,
        "parcel": lease.parcel,
    }  # fmt: skip
