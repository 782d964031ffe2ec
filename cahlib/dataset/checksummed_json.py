"""JSON that carries its own checksum, so that damage is found wherever it is read."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class _Signed(msgspec.Struct):
    sha256: str  #: hex, of the contents as they stand
    contents: msgspec.Raw


def packed(contents: Any) -> bytes:
    """Return a record as it is stored."""
    data = msgspec.json.encode(contents)
    digest = hashlib.sha256(data).hexdigest()
    return msgspec.json.encode(_Signed(sha256=digest, contents=msgspec.Raw(data)))


def unpacked(data: bytes, type: type[T]) -> T:
    """Return the inverse of `packed`. Raise ValueError if it is damaged."""
    signed = msgspec.json.decode(data, type=_Signed)
    if hashlib.sha256(signed.contents).hexdigest() != signed.sha256:
        raise ValueError("its checksum does not match")
    return msgspec.json.decode(signed.contents, type=type)
