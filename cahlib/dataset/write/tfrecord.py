"""Write and read TFRecord files without TensorFlow.

A file is a sequence of frames: length, its checksum, a tf.train.Example, its checksum. Formats:
tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/example.proto and
https://protobuf.dev/programming-guides/encoding/. The fields are those of the Crawling@Home
workers of 2021: sampleID, image, format and label are bytes, height and width are integers. Only
the part of protobuf that these fields need is implemented.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

from cahlib.core.records import Judged
from cahlib.dataset.storage.hashed_file import HashedFile
from cahlib.dataset.write.columns import Row

FeatureValue = bytes | int


class DamagedRecord(Exception):
    """A file does not hold complete records."""


class TFRecordWriter:
    """The pairs as TFRecord."""

    def __init__(self, file: HashedFile) -> None:
        self._file = file

    def add(self, pair: Judged, row: Row) -> None:
        self._file.write(
            frame_record(
                encode_example(
                    {
                        "sampleID": str(row["SAMPLE_ID"]).encode(),
                        "image": pair.image.data,
                        "format": pair.image.format.encode(),
                        "label": row["TEXT"].encode(),
                        "height": pair.image.height,
                        "width": pair.image.width,
                    }
                )
            )
        )

    def close(self) -> None:
        """Do nothing: nothing is buffered."""


def encode_example(features: dict[str, FeatureValue]) -> bytes:
    """Return a tf.train.Example; sorted entries make its bytes reproducible."""
    entries = (
        _field(1, _field(1, name.encode()) + _field(2, _feature(value)))
        for name, value in sorted(features.items())
    )
    return _field(1, b"".join(entries))


def frame_record(data: bytes) -> bytes:
    """Return a record with its length and checksums."""
    length = struct.pack("<Q", len(data))
    return b"".join([length, _checksum(length), data, _checksum(data)])


def read_tfrecords(file: BinaryIO) -> Iterator[dict[str, FeatureValue]]:
    """Yield the Examples of a TFRecord file; raise DamagedRecord for a damaged one."""
    while head := file.read(12):
        if len(head) < 12 or _checksum(head[:8]) != head[8:]:
            raise DamagedRecord("a length is damaged")
        (length,) = struct.unpack("<Q", head[:8])
        data, checksum = file.read(length), file.read(4)
        if len(data) < length or _checksum(data) != checksum:
            raise DamagedRecord("a record is damaged")
        try:
            yield dict(_parsed(data))
        except (ValueError, IndexError) as error:
            raise DamagedRecord("a record is not an Example of one value per field") from error


def _checksum(data: bytes) -> bytes:
    """Return the CRC-32C, masked as TensorFlow does for data that contains checksums."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _feature(value: FeatureValue) -> bytes:
    """Return a tf.train.Feature: BytesList is its field 1, Int64List its field 3, packed."""
    if isinstance(value, bytes):
        return _field(1, _field(1, value))
    return _field(3, _field(1, _varint(value)))


def _field(number: int, data: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    number &= (1 << 64) - 1  # negative numbers are written as their two's complement
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _parsed(example: bytes) -> Iterator[tuple[str, FeatureValue]]:
    """Yield the fields of an Example, the inverse of `encode_example`."""
    for _, features in _fields(example):
        for _, entry in _fields(features):
            name, feature = (data for _, data in _fields(entry))
            ((kind, listed),) = _fields(feature)
            ((_, value),) = _fields(listed)
            yield name.decode(), value if kind == 1 else _number(value, 0)[0]


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        number = data[at] >> 3
        length, at = _number(data, at + 1)
        yield number, data[at : at + length]
        at += length


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at a position, and the position after it."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
