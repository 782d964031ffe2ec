"""Small files that unpack to hundreds of MiB."""

from __future__ import annotations

import functools
import struct
import zlib

_MIB = 1 << 20


@functools.cache
def _mib() -> bytes:
    """A MiB of zeros as deflate has it; it may follow itself (to pack 500 takes 1.5 CPU s)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(bytes(_MIB)) + packer.flush(zlib.Z_FULL_FLUSH)


def zeros(mib: int) -> bytes:
    """So many MiB of zeros, packed by zlib."""
    checked = struct.pack(">I", (mib * _MIB % 65521) << 16 | 1)  # their Adler-32
    return b"\x78\xda" + _mib() * mib + b"\x03\0" + checked


def gzipped(mib: int, begin: bytes = b"") -> bytes:
    """Return this beginning and so many MiB of zeros, packed by gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    check, block = zlib.crc32(begin), bytes(_MIB)
    for _ in range(mib):
        check = zlib.crc32(block, check)
    head = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff"
    size = len(begin) + mib * _MIB
    return head + packed + _mib() * mib + b"\x03\0" + struct.pack("<II", check, size)
