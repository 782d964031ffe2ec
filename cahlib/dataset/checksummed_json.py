"""JSON that contains its own checksum, so that damage is found when it is read."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

_T = TypeVar("_T")


class _Checksummed(msgspec.Struct):
    sha256: str  #: hex, of the encoded contents
    contents: msgspec.Raw


_decoder = msgspec.json.Decoder(_Checksummed)


def encode_checksummed(contents: Any) -> bytes:
    """Return a record as it is stored."""
    data = msgspec.json.encode(contents)
    digest = hashlib.sha256(data).hexdigest()
    return msgspec.json.encode(_Checksummed(sha256=digest, contents=msgspec.Raw(data)))


def decode_checksummed(data: bytes, decoder: msgspec.json.Decoder[_T]) -> _T:
    """Return a stored record; raise ValueError if it is damaged."""
    checked = _decoder.decode(data)
    if hashlib.sha256(checked.contents).hexdigest() != checked.sha256:
        raise ValueError("its checksum does not match")
    return decoder.decode(checked.contents)
