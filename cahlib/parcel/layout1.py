"""Read parcels of an earlier cahlib, in which a JSON file follows each image."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import BinaryIO, NamedTuple

import msgspec

from cahlib.core.records import Image, Parcel
from cahlib.parcel.metadata import MAX_METADATA, ImageMetadata, decode_metadata
from cahlib.parcel.tar import TarError, TarMember, read_members

_NAME = re.compile(r"([0-9a-f]{32})\.(jpg|png|webp|avif)")
_decoder = msgspec.json.Decoder(ImageMetadata)


class _Place(NamedTuple):
    """The places of an image and its JSON in the tar."""

    position: int  #: of its candidate in the shard
    data: TarMember
    text: TarMember


def read_layout1(parcel: Parcel, file: BinaryIO) -> Iterator[Image]:
    """Yield the images of a parcel in the order of their positions; raise TarError."""
    places = sorted(_places(file))
    if len({place.position for place in places}) != parcel.images:
        raise TarError("does not have the images that its manifest counts")
    for place in places:
        metadata = _read_metadata(file, place.text)
        file.seek(place.data.offset)
        fields = {name: getattr(metadata, name) for name in ImageMetadata.__struct_fields__}
        format = place.data.name.partition(".")[2]
        yield Image(data=file.read(place.data.size), format=format, **fields)


def _places(file: BinaryIO) -> Iterator[_Place]:
    """Yield the places of images and JSON, which alternate and share the name of a candidate."""
    files = read_members(file)
    for data, text in zip_longest(files, files):
        if text is None:
            raise TarError("has an image without metadata")
        uid = data.name.partition(".")[0]
        if not _NAME.fullmatch(data.name) or text.name != f"{uid}.json":
            raise TarError("has files with unexpected names")
        candidate = _read_metadata(file, text).candidate
        if candidate.uid != uid:
            raise TarError("has an image under another's name")
        yield _Place(candidate.position, data, text)


def _read_metadata(file: BinaryIO, text: TarMember) -> ImageMetadata:
    if text.size > MAX_METADATA:
        raise TarError("has too long metadata of an image")
    file.seek(text.offset)
    return decode_metadata(file.read(text.size), _decoder)
