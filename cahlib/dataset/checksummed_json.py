"""JSON that carries its own checksum, so that damage is found wherever it is read."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")


class _Signed(msgspec.Struct):
    sha256: str  #: hex, of the contents as they stand
    contents: msgspec.Raw


def encode_checksummed(contents: Any) -> bytes:
    """Return a record as it is stored."""
    data = msgspec.json.encode(contents)
    digest = hashlib.sha256(data).hexdigest()
    return msgspec.json.encode(_Signed(sha256=digest, contents=msgspec.Raw(data)))


def decode_checksummed(data: bytes, type: type[_T]) -> _T:
    """Return the inverse of `encode_checksummed`. Raise ValueError if it is damaged."""
    signed = msgspec.json.decode(data, type=_Signed)
    if hashlib.sha256(signed.contents).hexdigest() != signed.sha256:
        raise ValueError("its checksum does not match")
    return msgspec.json.decode(signed.contents, type=type)
