"""The metadata of a parcel's images, as JSON that is not trusted."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec

from cahlib.core.lists import md5_digest
from cahlib.core.records import Candidate
from cahlib.parcel.tar import TarError

#: Bytes of an image's JSON: a million characters of raw text, the most that settings allow, all of
#: them escaped, and the rest.
MAX_METADATA = 8_000_000

#: What decoding raises for untrusted JSON.
INVALID_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

#: A length that fits a dataset's columns.
_Pixels: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
_Bytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
#: Where a file begins in the tar, and its length.
_Span: TypeAlias = tuple[_Bytes, _Bytes]
_Looks: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{16})?\Z")]


class ImageMetadata(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """An image without its bytes; by itself, the content of ``<uid>.json`` in layout 1."""

    candidate: Candidate
    width: _Pixels
    height: _Pixels
    original_width: _Pixels
    original_height: _Pixels
    md5: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    sha1: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40}\Z")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    robots: str


class ImageEntry(ImageMetadata, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A line of ``metadata.jsonl``: an image, and where its bytes are."""

    format: Literal["jpg", "png", "webp", "avif"]
    data: _Span
    thumb: _Span | None
    phash: _Looks
    chroma: _Looks


_Metadata = TypeVar("_Metadata", bound=ImageMetadata)


def decode_metadata(text: bytes, decoder: msgspec.json.Decoder[_Metadata]) -> _Metadata:
    """Return an image's metadata; raise TarError if it is invalid or has another's key."""
    try:
        found = decoder.decode(text)
    except INVALID_JSON as error:
        raise TarError(f"has invalid metadata of an image ({error})") from error
    candidate = found.candidate
    if candidate.uid != md5_digest(candidate.url + candidate.text).hex():
        raise TarError("has an image under another's name")
    return found
