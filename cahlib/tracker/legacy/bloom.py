"""Bloom filters mapped from their files, which processes share, in rbloom's format.

A filter tells of a line that it was never added, or that it probably was. The file has the number
of hashes in 8 bytes, then the bits, as `rbloom.Bloom.save` writes it, so a filter can serve as a
block list. Adding takes the file's lock; reading needs none, as bits are only ever set.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from cahlib.core.errors import ConfigError, disk_full_error, is_disk_full

#: rbloom's generator of positions, linear congruential over 128 bits.
_FACTOR, _MASK = 47026247687942121848144207491837418733, (1 << 128) - 1


def key_of(line: str) -> int:
    """Return the 128 bits of a line: an md5 in hex as it is, anything else hashed by md5."""
    if len(line) == 32:
        try:
            return int.from_bytes(bytes.fromhex(line), "big", signed=True)
        except ValueError:
            pass
    return int.from_bytes(hashlib.md5(line.encode()).digest(), "big", signed=True)


def create_filter(path: Path, *, items: int, error: float) -> None:
    """Create an empty filter with a capacity and the rate of false positives when full."""
    bits = -items * math.log(error) / math.log(2) ** 2
    size = 8 * math.ceil(bits / 64)
    try:
        with open(path, "xb") as file:
            file.write(struct.pack("<Q", max(int(bits / items * math.log(2)), 1)))
            # allocate all now: writing to a page without disk space kills the process (SIGBUS)
            os.posix_fallocate(file.fileno(), 0, 8 + size)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; choose another name.") from None
    except OSError as failure:
        if is_disk_full(failure):
            path.unlink()
            raise disk_full_error(path) from failure
        raise ConfigError(f"{path} cannot be written ({failure.strerror}).") from failure


class BloomFilter:
    """A filter on disk; safe for several threads and processes."""

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        if size <= 8 or size % 8:
            raise ConfigError(f"{path} is not a Bloom filter of cahlib or rbloom.")
        self._file = open(path, "r+b")
        self._map = mmap.mmap(self._file.fileno(), size)
        self._hashes = struct.unpack_from("<Q", self._map)[0]
        self._bits = (size - 8) * 8
        self._counter = open(path.with_suffix(".count"), "a+b")
        self._lock = threading.Lock()

    def missing(self, lines: Iterable[str]) -> list[str]:
        """Return the lines that are not in the filter."""
        return [line for line in lines if not self._holds(key_of(line))]

    def add(self, lines: Iterable[str]) -> int:
        """Add lines and write them to disk; return how many were new."""
        with self._lock:  # flock works between processes, not threads
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                fresh = sum(self._set(key_of(line)) for line in lines)
                self._map.flush()
                self._write_count(self.count + fresh)
                return fresh
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    @property
    def count(self) -> int:
        """The number of lines added that were new."""
        return int.from_bytes(os.pread(self._counter.fileno(), 8, 0), "little")

    def info(self) -> dict[str, int]:
        """Return the filter's numbers under the names of the legacy service."""
        return {
            "Number of items inserted": self.count,
            "Number of bits": self._bits,
            "Number of hashes": self._hashes,
        }

    def close(self) -> None:
        """Close the file."""
        self._map.close()
        self._file.close()
        self._counter.close()

    def _write_count(self, count: int) -> None:
        # a file opened for appending cannot be written in place, so it is opened again
        with open(self._counter.name, "r+b") as file:
            file.write(count.to_bytes(8, "little"))

    def _positions(self, state: int) -> Iterator[int]:
        state &= _MASK
        for _ in range(self._hashes):
            state = (state * _FACTOR + 1) & _MASK
            yield ((state >> 32) & 0xFFFF_FFFF_FFFF_FFFF) % self._bits

    def _holds(self, key: int) -> bool:
        return all(self._map[8 + (p >> 3)] >> (p & 7) & 1 for p in self._positions(key))

    def _set(self, key: int) -> bool:
        fresh = False
        for position in self._positions(key):
            place, bit = 8 + (position >> 3), 1 << (position & 7)
            if not self._map[place] & bit:
                self._map[place] |= bit
                fresh = True
        return fresh


def open_filters(folder: Path) -> dict[str, BloomFilter]:
    """Return the filters in a folder by name."""
    return {path.stem: BloomFilter(path) for path in sorted(folder.glob("*.bloom"))}
