"""Limit what other machines may send at once: Dask allocates memory for any announced length.

A machine that was taken over could fill the memory of its scheduler and driver with one message.
After `limit_messages`, connections that this process opens are closed on a message larger than any
result, before memory is allocated for it; connections that it accepts do so where their class says
so. Nothing is decompressed, since a megabyte of zeros becomes a gigabyte; cahlib's own messages are
not compressed. Objects are made from a few megabytes at most: an empty list takes one byte in a
message, and 64 here.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from distributed.comm.core import CommClosedError
from distributed.comm.registry import backends
from distributed.comm.tcp import (
    TCP,
    TLS,
    TCPBackend,
    TCPConnector,
    TLSBackend,
    TLSConnector,
)

from cahlib.engine.wire import MAX_PULLS, PIECE_SIZE, PIECES_AHEAD, InvalidMessage

#: Bytes of the largest result: all pieces in flight, which Dask may request together.
MAX_RESULT = (MAX_PULLS * PIECES_AHEAD + 1) * PIECE_SIZE

#: Bytes of the largest part that is decoded into objects, each many times its bytes.
_MAX_OBJECTS = 8 << 20

#: Bytes of the largest message of a worker; the largest seen in a run was a heartbeat of 2.7 kB.
MAX_WORKER_MESSAGE = 1 << 18

#: Any: their types lack what is replaced in them.
_tcp: Any = import_module("distributed.comm.tcp")
_worker: Any = import_module("distributed.worker")
_messages: Any = import_module("distributed.protocol.core")
_msgpack: Any = _messages.msgpack

_log = logging.getLogger(__name__)


class MessageTooLarge(CommClosedError):
    """Another machine announced a message larger than it may send."""


class _Bounded:
    """A connection that closes on a message larger than it may receive."""

    most: float = MAX_RESULT  #: bytes of a message
    stream: Any
    peer_address: str

    async def read(self, deserializers: Any = None) -> Any:
        if self.stream:
            self.stream.left = self.most
        try:
            return await super().read(deserializers)  # type: ignore[misc]
        except MessageTooLarge as error:
            _log.error("%s %s; its connection was closed.", self.peer_address, error)
            raise


class BoundedTLS(_Bounded, TLS):
    """A bounded connection over TLS."""


class BoundedTCP(_Bounded, TCP):
    """A bounded connection over TCP."""


class BoundedConnector(TLSConnector):
    """Opens bounded connections over TLS."""

    comm_class = BoundedTLS


class _Connector(TCPConnector):
    comm_class = BoundedTCP


class _TLSBackend(TLSBackend):
    _connector_class = BoundedConnector


class _TCPBackend(TCPBackend):
    _connector_class = _Connector


def limit_messages() -> None:
    """Limit the messages that this process accepts from other machines, from now on."""
    if _tcp.read_bytes_rw is _read:
        return
    _tcp.read_bytes_rw, _worker.get_data_from_worker = _read, _get_data
    _messages.decompress, _messages.msgpack = _decompress, _Msgpack
    backends["tls"], backends["tcp"] = _TLSBackend(), _TCPBackend()


_read_any, _get_any = _tcp.read_bytes_rw, _worker.get_data_from_worker


async def _read(stream: Any, length: int) -> Any:
    """Read so many bytes, if the message may have that many left."""
    if (left := getattr(stream, "left", None)) is not None:
        if length > left:
            raise MessageTooLarge(
                f"announced {length:,} bytes, where at most {left:,} are accepted"
            )
        stream.left = left - length
    return await _read_any(stream, length)


async def _get_data(rpc: Any, keys: Any, worker: str, **named: Any) -> Any:
    """Get results from a worker; one that is too large is rejected, not requested again."""
    try:
        return await _get_any(rpc, keys, worker, **named)
    except MessageTooLarge as error:
        return {"status": "OK", "data": dict.fromkeys(keys, InvalidMessage(f"It {error}."))}


def check_size(data: Any) -> None:
    """Raise InvalidMessage for more bytes than are decoded into objects."""
    if len(data) > _MAX_OBJECTS:
        raise InvalidMessage(f"It sent {len(data):,} bytes to decode, which is too much.")


class _Msgpack:
    """The part of `msgpack` that Dask uses for messages."""

    dumps = _msgpack.dumps

    @staticmethod
    def loads(data: Any, **named: Any) -> Any:
        check_size(data)
        return _msgpack.loads(data, **named)


def _decompress(header: Any, frames: Any) -> Any:
    if any(header["compression"]):
        raise InvalidMessage("It sent compressed data, which is not accepted.")
    return frames
